"""`fgrl demo`: the whole pipeline on an embedded default, on the CPU, without a network."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from fgrl.cli._common import require
from fgrl.cli._numbers import integer

NAME = "demo"
HELP = "run the whole pipeline on the CPU in a few minutes: edits, reward models, PPO, report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl demo`."""
    parser.add_argument(
        "--out", default="fgrl-demo", metavar="FOLDER", help="report and checkpoints (default: fgrl-demo)"
    )
    parser.add_argument("--seed", type=integer(0), default=0, help="decides everything that is drawn (default: 0)")
    parser.add_argument(
        "--workers",
        type=integer(1, 64),
        help="processes at the same time, one thread each (default: 2, or 1 on a single core)",
    )
    parser.add_argument("--quick", action="store_true", help="a much smaller run that only shows that everything works")


def run(args: argparse.Namespace) -> int:
    """Run the demo; the table goes to stdout, progress to stderr."""
    for module, extra in (("transformers", "train"), ("accelerate", "train"), ("codespell_lib", "demo")):
        require(module, extra)
    workers = args.workers if args.workers is not None else min(2, os.cpu_count() or 1)
    from fgrl.demo.config import DemoConfig
    from fgrl.demo.pipeline import run_demo
    from fgrl.demo.report import format_table

    config = replace(DemoConfig(), seed=args.seed, workers=workers)
    report = run_demo(config.quick() if args.quick else config, args.out, None if args.quiet else _Progress())
    print(format_table(report))
    print(f"report: {Path(args.out) / 'report.html'}")
    return 0


class _Progress:
    """The stage and how far it is, on stderr: one line a stage, redrawn on a terminal."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._redraws = sys.stderr.isatty()

    def __call__(self, stage: str, share: float) -> None:
        if share < 1.0 and not self._redraws:
            return
        end = "\n" if share >= 1.0 else ""
        seconds = time.monotonic() - self._start
        back = "\r" if self._redraws else ""
        sys.stderr.write(f"{back}{seconds:5.0f} s  {stage:<22} {100 * share:3.0f} %{end}")
        sys.stderr.flush()
