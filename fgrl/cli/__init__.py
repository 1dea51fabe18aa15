"""The `fgrl` command. Each subcommand is a module with `NAME`, `HELP`, `add_arguments` and `run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import fgrl
from fgrl.cli._common import OptionParser, UsageError, add_common_arguments, apply_config

_COMMANDS = {
    "doctor": "fgrl.cli.doctor",
    "demo": "fgrl.cli.demo",
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        The exit code: 0 when it did its work, 1 when the run failed (one sentence on stderr), 2 for a command line
        or configuration file that cannot be used.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser, command = build_parser(arguments[0] if arguments else None)
    try:
        if command is not None:
            apply_config(arguments, command)
        options = parser.parse_args(arguments)
        return int(options.run(options))
    except UsageError as error:
        print(f"fgrl: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        print("fgrl: interrupted", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if "--traceback" in arguments:
            raise
        print(f"fgrl: {error}", file=sys.stderr)
        return 1
