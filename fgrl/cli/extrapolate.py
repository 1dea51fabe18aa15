"""`fgrl extrapolate`: a checkpoint further in the direction that alignment took."""

from __future__ import annotations

import argparse
import sys

from fgrl.cli._common import require
from fgrl.cli._numbers import number

NAME = "extrapolate"
HELP = "go further in the direction that alignment took, without training (ExPO)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl extrapolate`."""
    parser.add_argument("aligned", help="folder of the checkpoint after preference training, in safetensors")
    parser.add_argument("sft", help="folder of the checkpoint that training started from")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write; it must not exist")
    parser.add_argument(
        "--alpha",
        type=number(),
        required=True,
        help="how much further, in units of the way taken (the paper: 0.3 to 0.5)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and say how far it moved."""
    require("safetensors", "train")
    from fgrl.preference import extrapolate

    result = extrapolate(args.aligned, args.sft, args.out, alpha=args.alpha)
    print(
        f"{result.tensors:,} tensors, {result.parameters:,} parameters moved by {result.relative_update:.3g} of their "
        f"norm; {args.out}",
        file=sys.stderr,
    )
    return 0
