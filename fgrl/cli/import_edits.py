"""`fgrl import`: edits of annotation tools, corpora and preference pairs as rows for `fgrl train-reward`."""

from __future__ import annotations

import argparse
import sys

from fgrl.cli._common import parse_columns, progress
from fgrl.cli._numbers import number

NAME = "import"
HELP = "edits from Label Studio, Argilla, M2, TSV, aligned files, CriticMarkup or close preference pairs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl import`."""
    from fgrl.data.formats import FORMATS

    parser.add_argument("format", choices=tuple(FORMATS), metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("source", metavar="FILE", help="what was exported there")
    parser.add_argument("--out", required=True, metavar="FILE", help="edited pairs: .jsonl, or - for standard output")
    parser.add_argument("--prompt", metavar="TEXT", help="the prompt of every row, where the format has none (m2)")
    parser.add_argument("--edited-file", metavar="FILE", help="the edits that belong to the lines of an aligned file")
    parser.add_argument("--prompt-file", metavar="FILE", help="its prompts")
    parser.add_argument(
        "--annotator", action="append", metavar="NAME", help="take the edits of this one only (may be repeated)"
    )
    parser.add_argument(
        "--max-edit-share",
        type=number(0, 1),
        default=0.3,
        help="preference pairs that differ in more of their words are passed over (default: 0.3)",
    )
    parser.add_argument(
        "--column", action="append", metavar="FIELD=NAME", help="field or column of prompt, original or edited"
    )
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="what to do at a bad record (default: raise)"
    )


def run(args: argparse.Namespace) -> int:
    """Import the file and say what became of its records."""
    from fgrl.data.formats import import_edits
    from fgrl.data.formats.records import Options
    from fgrl.data.output import check_outputs

    inputs = {"source": args.source, "--edited-file": args.edited_file, "--prompt-file": args.prompt_file}
    check_outputs({"--out": args.out}, {**inputs, "--config": args.config})
    options = Options(
        columns=parse_columns(args.column),
        prompt=args.prompt,
        annotators=tuple(args.annotator or ()),
        max_edit_share=args.max_edit_share,
        edited_file=args.edited_file,
        prompt_file=args.prompt_file,
    )
    report = import_edits(
        args.format,
        args.source,
        args.out,
        options=options,
        on_error=args.on_error,
        watch=lambda records: progress(records, desc="import", unit="records", quiet=args.quiet),
    )
    for message in report.errors:
        print(f"skipped: {message}", file=sys.stderr)
    for reason, count in sorted(report.passed_over.items()):
        print(f"no edit: {count:,} {reason}", file=sys.stderr)
    print(
        f"{report.records:,} records, {report.rows:,} rows ({report.unchanged:,} unchanged); "
        f"{report.skipped:,} bad records skipped; {args.out}",
        file=sys.stderr,
    )
    return 0
