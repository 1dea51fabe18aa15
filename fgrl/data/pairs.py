"""Edited pairs: a prompt, a response to it, and the same response after somebody edited it minimally."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fgrl.data.rows import OnError, Row, RowReader, check_columns, check_text, find_field

_ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("question",),
    "original": ("rejected",),
    "edited": ("chosen",),
    "error_spans": (),
}


@dataclass(frozen=True)
class EditedPair:
    """One checked row.

    Attributes:
        prompt: Text, or chat messages (`{"role": ..., "content": ...}`) that end before the response.
        original: The response as it was.
        edited: The response after the edit; may be empty, and may equal `original`.
        error_spans: Half-open character ranges of `original` that a human marked as wrong; `()` when a human marked
            none, None when nobody looked.
        line: Line of the file, or row of any other source; counts from 1.
    """

    prompt: str | list[dict[str, str]]
    original: str
    edited: str
    error_spans: tuple[tuple[int, int], ...] | None = None
    line: int = 0


class PairReader(RowReader[EditedPair]):
    """Iterates over the edited pairs of a source; see `read_pairs`."""

    def __init__(self, source: Any, *, on_error: OnError = "raise", columns: Mapping[str, str] | None = None):
        check_columns(columns, tuple(_ALIASES))
        super().__init__(source, on_error=on_error, columns=columns)

    def wanted(self) -> Collection[str]:
        return {
            name
            for field, aliases in _ALIASES.items()
            for name in ((self.columns[field],) if field in self.columns else (field, *aliases))
        }

    def convert(self, row: Row, number: int) -> EditedPair:
        original_name, original = self._required(row, "original")
        edited_name, edited = self._required(row, "edited")
        found = find_field(row, "prompt", _ALIASES["prompt"], self.columns)
        contexts = []
        if isinstance(original, list):
            original, context = _split_turn(original, original_name)
            contexts.append(context)
        if isinstance(edited, list):
            edited, context = _split_turn(edited, edited_name)
            contexts.append(context)
        if found is None and not contexts:
            raise ValueError(_missing(row, "prompt", self.columns))
        return EditedPair(
            prompt=_prompt(found, contexts, original_name, edited_name),
            original=check_text(original, original_name),
            edited=check_text(edited, edited_name),
            error_spans=self._spans(row, original),
            line=number,
        )

    def _required(self, row: Row, field: str) -> tuple[str, Any]:
        found = find_field(row, field, _ALIASES[field], self.columns)
        if found is None:
            raise ValueError(_missing(row, field, self.columns))
        return found

    def _spans(self, row: Row, original: str) -> tuple[tuple[int, int], ...] | None:
        found = find_field(row, "error_spans", (), self.columns)
        if found is None or found[1] is None:
            return None
        name, spans = found
        if not isinstance(spans, (list, tuple)):
            raise ValueError(f"field {name!r} must be a list of {{'start', 'end'}}, got {type(spans).__name__}.")
        return tuple(_span(span, f"{name}[{index}]", len(original)) for index, span in enumerate(spans))


def read_pairs(
    source: str | os.PathLike[str] | Iterable[Row],
    *,
    on_error: OnError = "raise",
    columns: Mapping[str, str] | None = None,
) -> PairReader:
    """Read edited pairs from `source`, streaming: one row is in memory at a time.

    A row has `prompt` (or `question`), `original` (or `rejected`), `edited` (or `chosen`) and, optionally,
    `error_spans`: a list of `{"start": int, "end": int}` (or `[start, end]`), characters of `original`.
    Responses are text, or message lists whose last turn is the assistant's, as in TRL's preference format; the turns
    before it are then the prompt, unless the row has a message list as its prompt.

    Args:
        source: Path of `.jsonl`, `.ndjson`, `.json` (lines, or one array; each also as `.gz`) or `.parquet`; a
            `datasets.Dataset` or `IterableDataset`; or any iterable of mappings.
        on_error: "raise" stops at the first bad row, "skip" passes over bad rows and counts them.
        columns: Where a field is called something else: `{"prompt": "instruction"}`.

    Returns:
        A reader that can be iterated over again, with `.source`, `.skipped` and `.errors` (the first messages).

    Raises:
        ValueError: Unknown suffix, `on_error` or field in `columns`; while iterating, a bad row (`RowError`, whose
            message has the line and the field).
        FileNotFoundError: There is no such file.

    Example:
        >>> rows = [{"prompt": "Sky?", "original": "It is gren.", "edited": "It is blue."}, {"prompt": "Sea?"}]
        >>> reader = read_pairs(rows, on_error="skip")
        >>> [pair.edited for pair in reader], reader.skipped
        (['It is blue.'], 1)
        >>> reader.errors
        ["list, row 2: field 'original' is missing: the row has 'prompt'."]
    """
    return PairReader(source, on_error=on_error, columns=columns)


def _missing(row: Row, field: str, columns: Mapping[str, str]) -> str:
    name = columns.get(field, field)
    have = ", ".join(repr(key) for key in row) or "no fields"
    return f"field {name!r} is missing: the row has {have}."


def check_messages(value: Any, field: str) -> list[dict[str, str]]:
    """`value` if it is a list of chat messages; `ValueError` naming `field` otherwise."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"field {field!r} must be text or a non-empty list of messages, got {_kind(value)}.")
    for index, message in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(message, Mapping):
            raise ValueError(f"field {where!r} must be a message with 'role' and 'content', got {_kind(message)}.")
        check_text(message.get("role"), f"{where}.role")
        if message.get("content") is not None or not message.get("tool_calls"):
            check_text(message.get("content"), f"{where}.content")
    return value


def check_prompt(value: Any, field: str) -> str | list[dict[str, str]]:
    """`value` if it is text or a list of chat messages; `ValueError` naming `field` otherwise."""
    return check_messages(value, field) if isinstance(value, list) else check_text(value, field)


def _split_turn(messages: Any, field: str) -> tuple[str, list[dict[str, str]]]:
    """The text of the last turn, which must be the assistant's, and the messages before it."""
    *context, last = check_messages(messages, field)
    if last["role"] != "assistant":
        where = f"{field}[{len(context)}].role"
        raise ValueError(f"field {where!r} must be 'assistant' in the last message, got {last['role']!r}.")
    return check_text(last.get("content"), f"{field}[{len(context)}].content"), context


def _prompt(
    found: tuple[str, Any] | None, contexts: list[list[dict[str, str]]], original_name: str, edited_name: str
) -> str | list[dict[str, str]]:
    prompt = check_prompt(found[1], found[0]) if found is not None else ""
    if isinstance(prompt, list) or not contexts:
        return prompt
    if any(context != contexts[0] for context in contexts):
        raise ValueError(
            f"field {edited_name!r} must have the same messages before its last turn as {original_name!r}."
        )
    if contexts[0]:
        return contexts[0]
    return [{"role": "user", "content": prompt}] if found is not None else ""


def _span(span: Any, field: str, length: int) -> tuple[int, int]:
    if isinstance(span, Mapping):
        start, end = _integer(span.get("start"), f"{field}.start"), _integer(span.get("end"), f"{field}.end")
    elif isinstance(span, (list, tuple)) and len(span) == 2:
        start, end = _integer(span[0], f"{field}[0]"), _integer(span[1], f"{field}[1]")
    else:
        raise ValueError(f"field {field!r} must be {{'start', 'end'}} or [start, end], got {_kind(span)}.")
    if not 0 <= start <= end <= length:
        raise ValueError(
            f"field {field!r} must lie within the {length} characters of the original, got [{start}, {end})."
        )
    return start, end


def _integer(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"field {field!r} must be an integer, got {_kind(value)}.")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return "null" if value is None else type(value).__name__
