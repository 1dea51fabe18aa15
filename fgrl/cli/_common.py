"""What every subcommand shares: usage errors, the YAML configuration file, columns, and progress bars."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fgrl.cli._errors import UsageError
from fgrl.cli._progress import progress

__all__ = [
    "OptionParser",
    "Renamed",
    "UsageError",
    "add_common_arguments",
    "apply_config",
    "parse_columns",
    "progress",
    "require",
]


class OptionParser(argparse.ArgumentParser):
    """A parser that takes flags in full only, and where a repeatable flag replaces its default.

    argparse would take `--conf` for `--config`, without the file being read, and append to what the file says.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.register("action", "append", _Repeatable)

    def error(self, message: str) -> NoReturn:
        """One sentence without the usage text, in the form that all others have."""
        raise UsageError(
            re.sub(r"^argument (\S+(?:/\S+)?): (is )?", lambda m: f"{m[1]}{' is ' if m[2] else ': '}", message)
        )


class _Repeatable(argparse.Action):
    """`action="append"`: the list of a flag's values, where there are any, and else the default."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        earlier = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [values] if earlier is self.default else [*earlier, values])


class Renamed(argparse.Action):
    """The old name of an option; its `dest` is that of the new one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        self.warn()
        setattr(namespace, self.dest, values)

    def warn(self) -> None:
        """Say on stderr what the option is called now."""
        print(f"fgrl: {self.option_strings[0]} is deprecated; use --{self.dest.replace('_', '-')}", file=sys.stderr)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, `--quiet` and `--traceback` to a subcommand."""
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of options, named as the flags are; flags override it"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--traceback", action="store_true", help="show the full traceback of a failure")


def apply_config(arguments: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Make the options of a `--config` file the defaults of the subcommand `parser`.

    Keys are flag names without the dashes (`learning-rate` or `learning_rate`). An option that is required on the
    command line is satisfied by the file.

    Raises:
        UsageError: the file cannot be read, is not a mapping, or has a key or value the command does not take.
    """
    path = _config_path(arguments)
    if path is None:
        return
    actions = {
        name.removeprefix("--").replace("-", "_"): action
        for action in parser._actions
        if action.dest != "help"
        for name in (action.option_strings or [action.dest])
    }
    for key, value in _read_yaml(path).items():
        action = actions.get(str(key).replace("-", "_"))
        if action is None:
            known = ", ".join(sorted({action.dest for action in actions.values()} - {"config", "traceback"}))
            raise UsageError(f"{path}: {key!r} is not an option of {parser.prog}; it must be one of {known}")
        parser.set_defaults(**{action.dest: _convert(path, str(key), value, action)})
        if isinstance(action, Renamed):
            action.warn()
        action.required = False
        if not action.option_strings:
            action.nargs = "?"


def require(module: str, extra: str) -> None:
    """Raise one clear sentence when a package that a command needs is not installed."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise UsageError(f"{module} is not installed; it must be for this command (pip install 'fgrl[{extra}]')")


def _config_path(arguments: Sequence[str]) -> Path | None:
    for index, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return Path(argument.partition("=")[2])
        if argument == "--config" and index + 1 < len(arguments):
            return Path(arguments[index + 1])
    return None


def _read_yaml(path: Path) -> dict[Any, Any]:
    require("yaml", "train")
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} holds a {type(content).__name__}; it must be a mapping of options")
    return content


def _convert(path: Path, key: str, value: Any, action: argparse.Action) -> Any:
    """`value` as the command line would have parsed it."""
    if value is None:
        raise UsageError(f"{path}: {key} is null; it must be a value, or left out for its default")
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{path}: {key} is {value!r}; it must be true or false")
        return value
    if isinstance(action, _Repeatable):
        return [_convert_one(path, key, item, action) for item in (value if isinstance(value, list) else [value])]
    return _convert_one(path, key, value, action)


def _convert_one(path: Path, key: str, value: Any, action: argparse.Action) -> Any:
    if isinstance(value, (list, dict, bool)) or value is None:
        raise UsageError(f"{path}: {key} is {value!r}; it must be one value")
    try:
        converted = str(value) if action.type is None else action.type(str(value))  # type: ignore[operator]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{path}: {key} {error}") from error
    if action.choices is not None and converted not in action.choices:
        raise UsageError(f"{path}: {key} is {value!r}; it must be one of {', '.join(map(str, action.choices))}")
    return converted


def parse_columns(options: list[str] | None) -> dict[str, str]:
    """`["prompt=instruction"]` -> `{"prompt": "instruction"}`."""
    columns = {}
    for option in options or []:
        field, separator, name = option.partition("=")
        if not separator or not field or not name:
            raise UsageError(f"--column is {option!r}; it must be FIELD=NAME, such as prompt=instruction")
        if field in columns:
            raise UsageError(f"--column names {field!r} twice; it must be once")
        columns[field] = name
    return columns
