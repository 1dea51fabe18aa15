"""`fgrl score`: rewards of single tokens, on the terminal, as JSON lines, or as an HTML page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from fgrl.cli._common import UsageError, parse_columns, progress, require
from fgrl.cli._errors import usable
from fgrl.cli._models import load_reward_model, usable_device
from fgrl.cli._numbers import integer

if TYPE_CHECKING:
    from fgrl.cli._scoring import ResponseReader, ScoredRow, ScoredSide
    from fgrl.trainer.reward_metrics import RewardMetrics

NAME = "score"
HELP = "token rewards of responses: on the terminal, as JSON lines, or as an HTML page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl score`."""
    parser.add_argument(
        "source",
        nargs="?",
        help="rows with original and edited, or with response: .jsonl, .json, .ndjson (also .gz) or .parquet",
    )
    parser.add_argument("--model", required=True, help="reward model: name, folder or .gguf")
    parser.add_argument("--tokenizer", help="its tokenizer (default: the model's)")
    parser.add_argument("--text", help="one response to score, instead of a file")
    parser.add_argument("--prompt", help="the prompt of --text")
    parser.add_argument("--out", metavar="FILE", help="write JSON lines in UTF-8; - for standard output")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page with coloured tokens")
    parser.add_argument("--html-rows", type=integer(1), default=200, help="most rows on the page (default: 200)")
    parser.add_argument("--limit", type=integer(0), help="score this many rows at most")
    parser.add_argument("--column", action="append", metavar="FIELD=NAME", help="column of a field: response=answer")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="what to do at a bad row (default: raise)"
    )
    parser.add_argument(
        "--edit-unit", choices=("token", "word"), default="token", help="widen edits to whole words (default: token)"
    )
    parser.add_argument(
        "--max-length", type=integer(1), default=1024, help="tokens of prompt and response (default: 1024)"
    )
    parser.add_argument("--batch-size", type=integer(1), default=8, help="rows scored at once (default: 8)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of weights (default: auto, that of the checkpoint)",
    )
    parser.add_argument("--attn-implementation", default="auto", help='"auto" (default) or a name of transformers')


def run(args: argparse.Namespace) -> int:
    """Score the rows and write them wherever was asked for."""
    require("transformers", "train")
    from fgrl.cli.score_html import render
    from fgrl.data.output import check_outputs, json_line, open_output
    from fgrl.trainer.reward_metrics import RewardMetrics

    reader = _reader(args)
    inputs = {"source": args.source, "--config": args.config, "--model": args.model, "--tokenizer": args.tokenizer}
    check_outputs({"--out": args.out, "--html": args.html}, inputs)
    metrics = RewardMetrics()
    on_page: list[ScoredRow] = []
    count = 0
    with ExitStack() as files:
        with usable("--out", args.out):
            records = None if args.out is None else files.enter_context(open_output(args.out))
        with usable("--html", args.html):
            page = None if args.html is None else files.enter_context(open_output(args.html))
        for row in _scored_rows(args, reader, metrics):
            count += 1
            if records is not None:
                records.write(json_line(row.as_json()))
            if page is not None and len(on_page) < args.html_rows:
                on_page.append(row)
            if records is None and page is None:
                _print_row(row, colour=sys.stdout.isatty())
        if page is not None:
            page.write(render(on_page, model=args.model, total=count).encode("utf-8", "backslashreplace"))
    _print_summary(count, reader, metrics)
    return 0


def _reader(args: argparse.Namespace) -> ResponseReader:
    from fgrl.cli._scoring import ResponseReader

    if (args.source is None) == (args.text is None):
        raise UsageError("the source is given twice or not at all; it must be either a file or --text")
    if args.prompt is not None and args.text is None:
        raise UsageError("--prompt is given with a file, which brings its own prompts; it must come with --text")
    source = args.source if args.text is None else [{"prompt": args.prompt or "", "response": args.text}]
    return ResponseReader(source, on_error=args.on_error, columns=parse_columns(args.column))


def _scored_rows(args: argparse.Namespace, reader: ResponseReader, metrics: RewardMetrics) -> Iterator[ScoredRow]:
    from itertools import islice

    from fgrl.cli._scoring import score_rows
    from fgrl.data import PairEncoder
    from fgrl.models.fit import context_length

    device = usable_device("--device", args.device)
    model, tokenizer = load_reward_model(
        args.model, args.tokenizer, dtype=args.dtype, attn_implementation=args.attn_implementation
    )
    if not model.head_loaded:
        print(
            f"fgrl: {args.model} has no reward head, so that every reward is 0; fgrl train-reward makes one",
            file=sys.stderr,
        )
    model.to(device).eval()
    max_length = min(args.max_length, context_length(model.config) or args.max_length)
    encoder = PairEncoder(tokenizer, max_length=max_length, edit_unit=args.edit_unit)
    rows = progress(islice(reader, args.limit), desc="score", unit="rows", quiet=args.quiet)
    return score_rows(model, encoder, reader, rows, batch_size=args.batch_size, metrics=metrics)


def _print_row(row: ScoredRow, *, colour: bool) -> None:
    margin = "" if row.margin is None else f", margin {row.margin:+.3f}"
    print(f"row {row.line}{margin}")
    names = ("response",) if row.edited is None else ("original", "edited")
    for name, side in zip(names, (row.original, row.edited), strict=False):
        if side is not None:
            print(f"  {name}")
            print(_coloured(side) if colour else _table(side))


def _table(side: ScoredSide) -> str:
    edits = side.edits or [False] * len(side.tokens)
    lines = (
        f"  {reward:+9.4f} {'*' if edit else ' '} {printable(token)}"
        for token, reward, edit in zip(side.tokens, side.rewards, edits, strict=True)
    )
    return "\n".join(lines)


def _coloured(side: ScoredSide) -> str:
    """Tokens in a row: red for negative rewards, blue for positive ones, edited tokens underlined."""
    scale = max(map(abs, side.rewards), default=0.0) or 1.0
    edits = side.edits or [False] * len(side.tokens)
    parts = []
    for token, reward, edit in zip(side.tokens, side.rewards, edits, strict=True):
        faded = int(255 * (1 - 0.6 * min(abs(reward) / scale, 1.0)))
        red, green, blue = (255, faded, faded) if reward < 0 else (faded, faded, 255)
        underline = ";4" if edit else ""
        parts.append(f"\x1b[30;48;2;{red};{green};{blue}{underline}m{printable(token)}\x1b[0m")
    return "  " + "".join(parts)


def printable(text: str) -> str:
    """`text` with control characters written out, so that no token can steer the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _print_summary(count: int, reader: ResponseReader, metrics: RewardMetrics) -> None:
    print(f"scored {count} rows", file=sys.stderr)
    values = metrics.compute()
    if values["pairs"]:
        for name, value in values.items():
            print(f"  {name:20} {value:.4f}" if isinstance(value, float) else f"  {name:20} {value}", file=sys.stderr)
    if reader.skipped:
        print(f"skipped {reader.skipped} bad rows; the first: {reader.errors[0]}", file=sys.stderr)
