"""`fgrl edit`: minimal edits of responses, by a server, a local model or a function."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgrl.cli._common import UsageError, parse_columns, require
from fgrl.cli._errors import usable
from fgrl.cli._functions import load_function
from fgrl.cli._numbers import integer, number

if TYPE_CHECKING:
    from fgrl.edits import CollectReport

NAME = "edit"
HELP = "ask an editor for the smallest change that makes each response good"
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl edit`."""
    parser.add_argument("source", help="rows with prompt and response: .jsonl, .json, .ndjson (also .gz) or .parquet")
    parser.add_argument("--out", required=True, metavar="FILE", help="edited pairs: .jsonl")
    parser.add_argument("--failed", metavar="FILE", help="rows without an edit to keep (default: OUT.failed.jsonl)")
    parser.add_argument(
        "--editor", required=True, metavar="WHO", help="URL of an OpenAI-compatible server, a model, or module:function"
    )
    parser.add_argument("--editor-model", metavar="NAME", help="the server's model (default: the only one it has)")
    parser.add_argument(
        "--api-key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable of the server's key"
    )
    parser.add_argument(
        "--mode", choices=("replacements", "text"), default="replacements", help="form of the answers (replacements)"
    )
    parser.add_argument("--template", metavar="FILE", help="the instruction, instead of that of the mode")
    parser.add_argument("--guideline", metavar="FILE", help="a rubric for the editor")
    parser.add_argument(
        "--max-edit-share", type=number(0, 1), default=0.4, help="largest share of words to change (default: 0.4)"
    )
    parser.add_argument("--attempts", type=integer(1), default=3, help="answers to a row at most (default: 3)")
    parser.add_argument("--allow-format", action="store_true", help="keep changes of white space and markup")
    parser.add_argument(
        "--minimise", metavar="JUDGE", help="undo what does not matter to: editor, a reward model, or module:function"
    )
    parser.add_argument(
        "--max-judgements", type=integer(1), default=32, help="questions to the judge a row (default: 32)"
    )
    parser.add_argument("--sample-from", metavar="WHO", help="sample responses first: URL or model; rows are prompts")
    parser.add_argument("--samples", type=integer(1), default=1, help="responses a prompt (default: 1)")
    parser.add_argument("--temperature", type=number(0), default=0.0, help="of the editor (default: 0)")
    parser.add_argument("--sample-temperature", type=number(0), default=1.0, help="of the sampler (default: 1)")
    parser.add_argument("--max-answer-tokens", type=integer(1), default=1024, help="longest answer (default: 1024)")
    parser.add_argument("--concurrency", type=integer(1, 1024), default=8, help="requests at a time (default: 8)")
    parser.add_argument("--timeout", type=number(above=0), default=120.0, help="seconds for an answer (default: 120)")
    parser.add_argument("--retries", type=integer(0), default=6, help="repetitions of a failed request (default: 6)")
    parser.add_argument("--max-wait", type=number(0), default=60.0, help="longest wait before one (default: 60 s)")
    parser.add_argument("--max-requests", type=integer(1), help="budget of the whole job, over all runs")
    parser.add_argument("--max-tokens", type=integer(1), help="budget of the whole job, over all runs")
    parser.add_argument("--column", action="append", metavar="FIELD=NAME", help="column of a field: original=answer")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="what to do at a bad row (default: raise)"
    )


def run(args: argparse.Namespace) -> int:
    """Collect the edits; 1 where some rows have none, 2 where the run ended early and can go on."""
    from fgrl.data.output import check_outputs
    from fgrl.edits import Budget, BudgetSpent, CollectSettings, EditorUnavailable, collect_edits

    inputs = {"source": args.source, "--template": args.template, "--guideline": args.guideline}
    check_outputs({"--out": args.out, "--failed": args.failed}, {**inputs, "--config": args.config})
    settings = CollectSettings(
        mode=args.mode,
        template=_text("--template", args.template),
        guideline=_text("--guideline", args.guideline) or "",
        max_edit_share=args.max_edit_share,
        attempts=args.attempts,
        keep_format=not args.allow_format,
        concurrency=args.concurrency,
        retries=args.retries,
        max_wait=args.max_wait,
        max_judgements=args.max_judgements,
        samples=args.samples,
    )
    show = _progress(args.quiet)
    try:
        report = collect_edits(
            args.source,
            args.out,
            _editor(args, "--editor", args.editor, args.temperature),
            settings=settings,
            budget=Budget(args.max_requests, args.max_tokens),
            judge=_judge(args),
            sampler=args.sample_from and _editor(args, "--sample-from", args.sample_from, args.sample_temperature),
            failed=args.failed,
            on_error=args.on_error,
            columns=parse_columns(args.column),
            tick=show,
        )
    except (BudgetSpent, EditorUnavailable) as error:
        wider = " with a larger one" if isinstance(error, BudgetSpent) else ""
        raise UsageError(
            f"{error}; the same command{wider} must be run again, which goes on from {args.out}.journal"
        ) from error
    except KeyboardInterrupt:
        print("\ninterrupted: the same command continues where it stopped", file=sys.stderr)
        raise
    _print_report(report, args)
    return 1 if report.failed else 0


def _text(flag: str, path: str | None) -> str | None:
    if path is None:
        return None
    with usable(flag, path):
        return Path(path).read_text(encoding="utf-8")


def _editor(args: argparse.Namespace, flag: str, name: str, temperature: float) -> Any:
    from fgrl.edits.local import FunctionEditor, ModelEditor

    if name.startswith(("http://", "https://")):
        from fgrl.edits.server import ServerEditor

        require("openai", "edit")
        return ServerEditor(
            name,
            model=args.editor_model,
            key_variable=args.api_key_variable,
            timeout=args.timeout,
            temperature=temperature,
            max_tokens=args.max_answer_tokens,
        )
    if _FUNCTION.match(name):
        if flag == "--sample-from":
            raise UsageError(f"{flag} is {name}; it must be a URL or a model")
        return FunctionEditor(load_function(flag, name), name)
    require("transformers", "train")
    from fgrl.models import load_causal_lm, load_tokenizer

    with usable(flag, name):
        tokenizer = load_tokenizer(name)
        model = load_causal_lm(name).eval()
    return ModelEditor(model, tokenizer, name, max_tokens=args.max_answer_tokens, temperature=temperature)


def _judge(args: argparse.Namespace) -> Any:
    name = args.minimise
    if name is None or name == "editor":
        return name
    if _FUNCTION.match(name):
        return load_function("--minimise", name)
    require("transformers", "train")
    from threading import Lock

    from fgrl.cli._models import load_reward_model
    from fgrl.cli._scoring import ResponseReader, score_rows
    from fgrl.data import PairEncoder

    model, tokenizer = load_reward_model(name, None, flag="--minimise")
    model.eval()
    encoder, lock = PairEncoder(tokenizer), Lock()

    def score(prompt: Any, response: str) -> float:
        reader = ResponseReader([{"prompt": prompt, "response": response}])
        with lock:
            return sum(sum(row.original.rewards) for row in score_rows(model, encoder, reader, reader, batch_size=1))

    return score


def _progress(quiet: bool) -> Callable[[CollectReport], None] | None:
    """Draws one line on a terminal a few times a second."""
    if quiet or not sys.stderr.isatty():
        return None
    started = last = time.monotonic()

    def show(report: CollectReport) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 0.2:
            last = now
            done = report.rows + report.failed
            share = report.share / max(report.rows, 1)
            sys.stderr.write(
                f"\redit {done:,} rows, {done / (now - started):,.1f} rows/s, {report.tokens:,} tokens, "
                f"{share:.1%} of the words edited, {report.failed:,} failed "
            )

    return show


def _print_report(report: CollectReport, args: argparse.Namespace) -> None:
    for reason in report.reasons:
        print(f"failed: {reason}", file=sys.stderr)
    for message in report.errors:
        print(f"skipped: {message}", file=sys.stderr)
    share, before = (value / max(report.rows, 1) for value in (report.share, report.share_before))
    smaller = f" ({before:.1%} before it was minimised)" if args.minimise else ""
    print(
        f"{report.rows:,} rows ({report.unchanged:,} with nothing to change), {report.failed:,} failed, "
        f"{report.skipped:,} bad rows skipped; {share:.1%} of the words edited{smaller}; {report.requests:,} requests, "
        f"{report.tokens:,} tokens, {report.resumed:,} answers of earlier runs; {report.asked_again:,} asked again, "
        f"{report.repeated:,} repeated; {report.seconds:.1f} s; {args.out}",
        file=sys.stderr,
    )
