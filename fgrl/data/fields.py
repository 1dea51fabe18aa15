"""Fields of a raw row: which column holds one, and whether it holds what it must."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


def find_field(row: Row, field: str, aliases: tuple[str, ...], columns: Mapping[str, str]) -> tuple[str, Any] | None:
    """The column of `row` that holds `field`, and its value; None when there is none."""
    for name in (columns[field],) if field in columns else (field, *aliases):
        if name in row:
            return name, row[name]
    return None


def check_columns(columns: Mapping[str, str] | None, fields: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `columns` maps known field names to column names."""
    for field, column in (columns or {}).items():
        if field not in fields:
            raise ValueError(f"columns has the field {field!r}; it must be one of {', '.join(fields)}")
        if not isinstance(column, str):
            raise ValueError(f"columns[{field!r}] is {kind_name(column)}; it must be the name of a column")


def check_text(value: Any, field: str) -> str:
    """`value` if it is text that can be encoded; `ValueError` naming `field` otherwise."""
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is {kind_name(value)}; it must be text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"field {field!r} is text with an unpaired surrogate at character {error.start}; it must be Unicode"
            ) from error
    return value


def without_fillers(value: Any) -> Any:
    """Messages of a columnar source without the nulls that stand for absent fields there; `content` stays."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value):
        return [{"content": message.get("content")} | _without_nulls(message) for message in value]
    return value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def missing_field(row: Row, field: str, columns: Mapping[str, str]) -> str:
    """What is wrong with a row that lacks `field`."""
    have = ", ".join(repr(key) for key in row) or "none"
    return f"field {columns.get(field, field)!r} is missing; it must be one of the row's, which are {have}"


def kind_name(value: Any) -> str:
    """What `value` is, for the sentence that refuses it."""
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return "text"
    return "null" if value is None else f"of type {type(value).__name__}"
