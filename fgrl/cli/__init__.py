"""The `fgrl` command. Each subcommand is a module with `NAME`, `HELP`, `add_arguments` and `run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import fgrl
from fgrl.cli._common import UsageError, add_common_arguments, apply_config

_COMMANDS = {
    "doctor": "fgrl.cli.doctor",
    "demo": "fgrl.cli.demo",
    "align": "fgrl.cli.align",
    "train-reward": "fgrl.cli.train_reward",
    "train-ppo": "fgrl.cli.train_ppo",
    "score": "fgrl.cli.score",
}


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and those of the subcommands by name."""
    parser = argparse.ArgumentParser(prog="fgrl", description="Fine-grained RL from minimal edits.")
    parser.add_argument("--version", action="version", version=f"fgrl {fgrl.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {}
    for name, home in _COMMANDS.items():
        module = import_module(home)
        command = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        add_common_arguments(command)
        command.set_defaults(run=module.run)
        commands[name] = command
    return parser, commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        The exit code: 0 when it did its work, 1 when the run failed (one sentence on stderr), 2 for a command line
        or configuration file that cannot be used.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser, commands = build_parser()
    try:
        apply_config(arguments, commands)
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
