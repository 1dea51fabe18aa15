"""`fgrl export`: responses as tasks of an annotation tool."""

from __future__ import annotations

import argparse
import sys

from fgrl.cli._common import parse_columns, progress

NAME = "export"
HELP = "responses as tasks for Label Studio or Argilla, with the configuration that shows them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl export`."""
    from fgrl.data.formats import EXPORT_FORMATS

    names = ", ".join(EXPORT_FORMATS)
    parser.add_argument("format", choices=tuple(EXPORT_FORMATS), metavar="FORMAT", help=f"one of {names}")
    parser.add_argument(
        "source", metavar="FILE", help="rows with prompt and response, and perhaps an edit to begin with"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where tasks and configuration go")
    parser.add_argument("--column", action="append", metavar="FIELD=NAME", help="column of a field: original=answer")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="what to do at a bad row (default: raise)"
    )


def run(args: argparse.Namespace) -> int:
    """Export the file and say where the tasks are."""
    from fgrl.data.formats import export_tasks

    report = export_tasks(
        args.format,
        args.source,
        args.out,
        columns=parse_columns(args.column),
        on_error=args.on_error,
        watch=lambda rows: progress(rows, desc="export", unit="rows", quiet=args.quiet),
    )
    for message in report.errors:
        print(f"skipped: {message}", file=sys.stderr)
    print(
        f"{report.tasks:,} tasks; {report.skipped:,} bad rows skipped; {' and '.join(report.files)} in {args.out}",
        file=sys.stderr,
    )
    return 0
