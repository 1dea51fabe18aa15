"""`--set NAME=VALUE`: the value is YAML, read as what the field of the configuration holds."""

from __future__ import annotations

import dataclasses
import inspect
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fgrl.cli._common import UsageError


def parse_settings(settings: list[str] | None, config: type) -> dict[str, Any]:
    """`["vf_coef=1e-1"]` -> `{"vf_coef": 0.1}`, by the annotations of the dataclass `config`.

    YAML alone reads `1e-1` as text, and `no` as False where the field holds a name.

    Raises:
        UsageError: no such field, no YAML, or a value that the field cannot hold.
    """
    import yaml

    kinds = get_type_hints(config)
    fields = {field.name for field in dataclasses.fields(config) if field.init}
    parsed = {}
    for setting in settings or []:
        name, separator, text = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not separator or name not in fields:
            raise UsageError(f"--set is {setting!r}; it must be NAME=VALUE with a field of {config.__name__}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(
                f"--set is {setting!r}; its value must be YAML ({' '.join(str(error).split())})"
            ) from error
        try:
            parsed[name] = _fit(value, text.strip(), kinds[name])
        except ValueError as error:
            kind = inspect.formatannotation(kinds[name])
            raise UsageError(f"--set is {setting!r}; {name} must be {kind}") from error
    return parsed


def _fit(value: Any, text: str, kind: Any) -> Any:
    """`value`, which YAML read from `text`, where it is a `kind`; else what `kind` makes of it."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if any(_is_a(value, member) for member in members):
        return value
    for member in sorted(members, key=lambda member: member is str):  # text last: anything can be read as one
        with suppress(ValueError):
            return _convert(value, text, member)
    raise ValueError


def _is_a(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return any(type(value) is type(option) and value == option for option in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (NoneType if kind is None else get_origin(kind) or kind)


def _convert(value: Any, text: str, kind: Any) -> Any:
    if kind in (int, float) and isinstance(value, str):
        return kind(value)
    if kind is str and not isinstance(value, (NoneType, list, dict)):
        return text
    if get_origin(kind) is list and isinstance(value, list):
        return [_fit(item, str(item), get_args(kind)[0]) for item in value]
    raise ValueError
