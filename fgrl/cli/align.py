"""`fgrl align`: per-token edit labels for a file of edited pairs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fgrl.cli._common import UsageError, parse_columns, progress, require
from fgrl.cli._errors import usable
from fgrl.cli._numbers import integer

if TYPE_CHECKING:
    from fgrl.data.align_file import AlignReport
    from fgrl.data.rows import RawRow

NAME = "align"
HELP = "align edited pairs and write per-token labels and opcodes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl align`."""
    parser.add_argument("source", help="pairs: .jsonl, .json, .ndjson (also .gz) or .parquet")
    parser.add_argument("--out", required=True, metavar="FILE", help="labels: .jsonl or .parquet")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="Hugging Face tokenizer, name or folder (default: words and punctuation)"
    )
    parser.add_argument("--gguf-file", metavar="FILE", help="GGUF file in the tokenizer's folder to load it from")
    parser.add_argument(
        "--edit-unit", choices=("token", "word"), default="token", help="widen edits to whole words (default: token)"
    )
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="what to do at a bad row (default: raise)"
    )
    parser.add_argument(
        "--column", action="append", metavar="FIELD=NAME", help="column of a field, such as prompt=instruction"
    )
    parser.add_argument("--batch-size", type=integer(1), default=256, help="pairs aligned at once (default: 256)")
    parser.add_argument("--overwrite", action="store_true", help="start over, and replace --out at the end")


def run(args: argparse.Namespace) -> int:
    """Align the file and report how fast."""
    from fgrl.data.align_file import align_file
    from fgrl.data.output import check_outputs
    from fgrl.data.rows import RowError

    if args.gguf_file and not args.tokenizer:
        raise UsageError("--gguf-file is given alone; it must come with --tokenizer, the folder it is in")
    check_outputs({"--out": args.out}, {"source": args.source, "--config": args.config, "--tokenizer": args.tokenizer})
    tokenizer = _load_tokenizer(args.tokenizer, args.gguf_file) if args.tokenizer else None

    def watch(rows: Iterator[RawRow], done: int) -> Iterator[RawRow]:
        if done:
            print(f"continuing after row {done} of {args.source}", file=sys.stderr)
        quiet = args.quiet or not sys.stderr.isatty()
        total = None if quiet else _count_rows(args.source)
        left = None if total is None else max(total - done, 0)
        return progress(rows, total=left, desc="align", unit="pairs", quiet=quiet)

    try:
        report = align_file(
            args.source,
            args.out,
            tokenizer=tokenizer,
            tokenizer_name=" ".join(filter(None, (args.tokenizer, args.gguf_file))) or "plain",
            edit_unit=args.edit_unit,
            on_error=args.on_error,
            columns=parse_columns(args.column),
            overwrite=args.overwrite,
            batch_size=args.batch_size,
            watch=watch,
        )
    except KeyboardInterrupt:
        print(f"interrupted: the same command{_without_overwrite(args)} continues where it stopped", file=sys.stderr)
        raise
    except RowError as error:
        raise RowError(
            f"{error} (rows before it are kept: repair the row, or add --on-error skip, and run the same "
            f"command{_without_overwrite(args)} to continue)"
        ) from error
    _print_report(report, args.out)
    return 0


def _without_overwrite(args: argparse.Namespace) -> str:
    return " without --overwrite" if args.overwrite else ""


def _load_tokenizer(name: str, gguf_file: str | None) -> Any:
    require("transformers", "train")
    from transformers import AutoTokenizer

    with usable("--tokenizer", name):
        return AutoTokenizer.from_pretrained(name, **({"gguf_file": gguf_file} if gguf_file else {}))


def _count_rows(source: str) -> int | None:
    """Rows of the file, for the progress bar; None where counting is no quick look."""
    from fgrl.data.rows import is_lines, kind_of, parquet_file

    if kind_of(source) == "parquet":
        with parquet_file(source) as file:
            return int(file.metadata.num_rows)
    if not is_lines(source) or source.endswith(".gz"):
        return None
    with open(source, "rb") as lines:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: lines.read(1 << 20), b""))


def _print_report(report: AlignReport, out: str) -> None:
    for message in report.errors:
        print(f"skipped: {message}", file=sys.stderr)
    if report.skipped > len(report.errors):
        print(f"skipped: and {report.skipped - len(report.errors)} more", file=sys.stderr)
    resumed = f", {report.resumed_pairs:,} of them by earlier runs" if report.resumed_pairs else ""
    print(
        f"{report.pairs:,} pairs, {report.tokens:,} tokens{resumed}; {report.skipped:,} bad rows skipped; "
        f"{report.seconds:.1f} s, {report.pairs_per_second:,.0f} pairs/s, {report.tokens_per_second:,.0f} tokens/s; "
        f"{out}"
    )
