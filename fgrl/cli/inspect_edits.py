"""`fgrl inspect`: what is in a file of edits, and what is off about it, before a model is trained on it."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from typing import Any

from fgrl.cli._common import UsageError, parse_columns, progress, require
from fgrl.cli._errors import usable
from fgrl.cli._numbers import integer, number

NAME = "inspect"
HELP = "what is in a file of edits and what is off: rewrites, duplicates, leaks, truncation, disagreement"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl inspect`."""
    parser.add_argument("source", help="pairs: .jsonl, .json, .ndjson (also .gz) or .parquet")
    parser.add_argument(
        "--model", metavar="NAME", help="tokenizer to count tokens with, name or folder (default: words)"
    )
    parser.add_argument("--gguf-file", metavar="FILE", help="GGUF file in the folder of --model to load it from")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page with charts and the strangest rows")
    parser.add_argument("--held-out", metavar="FILE", help="rows whose prompts must not be among those of the source")
    parser.add_argument(
        "--max-length", type=integer(1), default=1024, help="tokens of prompt and response (default: 1024)"
    )
    parser.add_argument(
        "--max-edit-share", type=number(0, 1), default=0.5, help="a larger share of words is a rewrite (default: 0.5)"
    )
    parser.add_argument(
        "--group-by", action="append", metavar="FIELD", help="tell rows apart by it (default: source, annotator)"
    )
    parser.add_argument("--column", action="append", metavar="FIELD=NAME", help="column of a field: prompt=instruction")
    parser.add_argument("--workers", type=integer(1, 256), help="processes (default: one a core)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when something is off")


def run(args: argparse.Namespace) -> int:
    """Inspect the file, print what was found, and write the page."""
    from fgrl.cli.inspect_html import render, sections
    from fgrl.data.inspection import findings, inspect_edits
    from fgrl.data.output import check_outputs, open_output

    inputs = {"source": args.source, "--held-out": args.held_out, "--model": args.model, "--config": args.config}
    check_outputs({"--html": args.html}, inputs)
    with ExitStack() as files:
        with usable("--html", args.html):
            page = None if args.html is None else files.enter_context(open_output(args.html))
        summary = inspect_edits(
            args.source,
            tokenizer=_tokenizer(args),
            max_length=args.max_length,
            max_edit_share=args.max_edit_share,
            group_by=args.group_by or ("source", "annotator"),
            held_out=args.held_out,
            columns=parse_columns(args.column),
            workers=args.workers or os.cpu_count() or 1,
            watch=lambda rows: progress(rows, desc="inspect", unit="rows", quiet=args.quiet),
        )
        if page is not None:
            page.write(render(summary, os.path.basename(args.source)).encode("utf-8", "backslashreplace"))
    for title, rows in sections(summary):
        print(title)
        for name, value in rows:
            print(f"  {name:52} {value}")
    found = findings(summary)
    off = [finding for finding in found if finding.off]
    print("findings")
    for finding in found:
        lines = f"; lines {', '.join(map(str, finding.lines))}" if finding.lines else ""
        print(f"{'! ' if finding.off else '  '}{finding.name:52} {finding.count:,} ({finding.share:.2%}){lines}")
    for message in summary.errors:
        print(f"bad: {message}", file=sys.stderr)
    if off:
        print(f"{len(off)} of {len(found)} counts are off", file=sys.stderr)
    return 1 if args.strict and off else 0


def _tokenizer(args: argparse.Namespace) -> Any:
    if args.model is None:
        if args.gguf_file:
            raise UsageError("--gguf-file is given alone; it must come with --model, the folder it is in")
        return None
    require("transformers", "train")
    from transformers import AutoTokenizer

    with usable("--model", args.model):
        return AutoTokenizer.from_pretrained(args.model, **({"gguf_file": args.gguf_file} if args.gguf_file else {}))
