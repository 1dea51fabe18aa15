"""The `fgrl` command. Each subcommand is a module with `NAME`, `HELP`, `add_arguments` and `run`."""

from __future__ import annotations

import argparse
import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import fgrl
from fgrl.cli._common import OptionParser, add_common_arguments, apply_config
from fgrl.cli._errors import leave_closed_pipe, user_error

_COMMANDS = {
    "doctor": "fgrl.cli.doctor",
    "demo": "fgrl.cli.demo",
    "edit": "fgrl.cli.edit",
    "import": "fgrl.cli.import_edits",
    "export": "fgrl.cli.export_tasks",
    "inspect": "fgrl.cli.inspect_edits",
    "align": "fgrl.cli.align",
    "train-reward": "fgrl.cli.train_reward",
    "train-ppo": "fgrl.cli.train_ppo",
    "score": "fgrl.cli.score",
    "extrapolate": "fgrl.cli.extrapolate",
}


def build_parser(command: str | None) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser | None]:
    """The parser of the whole command line, and that of the subcommand `command`, the only one with its options."""
    parser = OptionParser(prog="fgrl", description="Fine-grained RL from minimal edits.")
    parser.add_argument("--version", action="version", version=f"fgrl {fgrl.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = None
    for name, home in _COMMANDS.items():
        module = import_module(home)
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        if name == command:
            module.add_arguments(subparser)
            add_common_arguments(subparser)
            subparser.set_defaults(run=module.run)
            chosen = subparser
    return parser, chosen


@contextmanager
def _unwinding_on_signals() -> Iterator[None]:
    """A request to end (from `kill`, a scheduler or a closed terminal) unwinds, so that drafts of outputs are removed.

    The exit code is 128 plus the signal's number, as a shell reports it. A signal that is ignored (`nohup`) stays so.
    """

    def leave(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    mine = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                mine.append(number)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        The exit code: 0 when it did its work, 2 for a user's mistake (one sentence on stderr), 130 when interrupted
        (128 plus its number for another signal to end), 141 when nobody reads its output. A bug is raised, for Python
        to show its traceback and exit with 1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console that lacks a character shows its escape
    try:
        parser, command = build_parser(arguments[0] if arguments else None)
        if command is not None:
            apply_config(arguments, command)
        options = parser.parse_args(arguments)
        with _unwinding_on_signals():
            code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        leave_closed_pipe()
        return 141
    except KeyboardInterrupt:
        print("fgrl: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = user_error(error)
        if sentence is None or "--traceback" in arguments:
            raise
        print(f"fgrl: {sentence}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            leave_closed_pipe()
        return 2
