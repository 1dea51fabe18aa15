"""Edited pairs: a prompt, a response to it, and the same response after somebody edited it minimally."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fgrl.data.conversations import Message, check_prompt, check_tools, join_turns, split_response
from fgrl.data.fields import Row, check_columns, check_text, find_field, kind_name, missing_field
from fgrl.data.rows import OnError, RowReader

_ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("question",),
    "original": ("rejected",),
    "edited": ("chosen",),
    "error_spans": (),
    "tools": (),
}


@dataclass(frozen=True)
class EditedPair:
    """One checked row.

    Attributes:
        prompt: Text, or chat messages (`{"role": ..., "content": ...}` and what else they have) before the response.
        original: The response as it was.
        edited: The response after the edit; may be empty, and may equal `original`.
        error_spans: Half-open character ranges of `original` that a human marked as wrong; `()` when a human marked
            none, None when nobody looked.
        line: Line of the file, or row of any other source; counts from 1.
        tools: JSON schemas of the tools of a conversation, for the chat template; None without tools.
    """

    prompt: str | list[Message]
    original: str
    edited: str
    error_spans: tuple[tuple[int, int], ...] | None = None
    line: int = 0
    tools: list[Any] | None = None


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
        sides = {field: self._required(row, field) for field in ("original", "edited")}
        turns, texts = {}, {}
        for field, (name, value) in sides.items():
            if isinstance(value, list):
                turns[name], texts[field] = split_response(value, name)
            else:
                texts[field] = check_text(value, name)
        found = find_field(row, "tools", (), self.columns)
        return EditedPair(
            prompt=self.joined_prompt(row, turns),
            original=texts["original"],
            edited=texts["edited"],
            error_spans=self._spans(row, texts["original"]),
            line=number,
            tools=None if found is None else check_tools(found[1], found[0]),
        )

    def joined_prompt(self, row: Row, turns: dict[str, list[Message]]) -> str | list[Message]:
        """The prompt of both responses; `turns` are the messages in front of those that are conversations."""
        found = find_field(row, "prompt", _ALIASES["prompt"], self.columns)
        if found is None and not turns:
            raise ValueError(missing_field(row, "prompt", self.columns))
        if not turns:
            return check_prompt(found[1], found[0]) if found is not None else ""
        prompt = check_prompt(found[1], found[0]) if found is not None and found[1] is not None else None
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}] if prompt or not any(turns.values()) else []
        joined = {name: join_turns(prompt or [], some, name) for name, some in turns.items()}
        (first, result), *others = joined.items()
        for name, other in others:
            if other != result:
                raise ValueError(
                    f"field {name!r} has other messages before its last turn than {first!r}; they must be the same"
                )
        return result or ""

    def _required(self, row: Row, field: str) -> tuple[str, Any]:
        found = find_field(row, field, _ALIASES[field], self.columns)
        if found is None:
            raise ValueError(missing_field(row, field, self.columns))
        return found

    def _spans(self, row: Row, original: str) -> tuple[tuple[int, int], ...] | None:
        found = find_field(row, "error_spans", (), self.columns)
        if found is None or found[1] is None:
            return None
        name, spans = found
        if not isinstance(spans, (list, tuple)):
            raise ValueError(f"field {name!r} is {kind_name(spans)}; it must be a list of {{'start', 'end'}}")
        return tuple(_span(span, f"{name}[{index}]", len(original)) for index, span in enumerate(spans))


def read_pairs(
    source: str | os.PathLike[str] | Iterable[Row],
    *,
    on_error: OnError = "raise",
    columns: Mapping[str, str] | None = None,
) -> PairReader:
    """Read edited pairs from `source`, streaming: one row is in memory at a time.

    A row has `prompt` (or `question`), `original` (or `rejected`), `edited` (or `chosen`) and, optionally,
    `error_spans`: a list of `{"start": int, "end": int}` (or `[start, end]`), characters of `original`; and `tools`.
    Responses are text, or message lists whose last turn is the assistant's, as in TRL's preference format. The turns
    before it are joined to the prompt, which they may continue or repeat (a prompt that is text is a user's turn then);
    a row whose turns do neither, or differ between the two responses, is a bad row. No message is dropped.

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
        ["list, row 2: field 'original' is missing; it must be one of the row's, which are 'prompt'"]
    """
    return PairReader(source, on_error=on_error, columns=columns)


def _span(span: Any, field: str, length: int) -> tuple[int, int]:
    if isinstance(span, Mapping):
        start, end = _integer(span.get("start"), f"{field}.start"), _integer(span.get("end"), f"{field}.end")
    elif isinstance(span, (list, tuple)) and len(span) == 2:
        start, end = _integer(span[0], f"{field}[0]"), _integer(span[1], f"{field}[1]")
    else:
        raise ValueError(f"field {field!r} is {kind_name(span)}; it must be {{'start', 'end'}} or [start, end]")
    if not 0 <= start <= end <= length:
        raise ValueError(
            f"field {field!r} is [{start}, {end}); it must lie within the {length} characters of the original"
        )
    return start, end


def _integer(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"field {field!r} is {kind_name(value)}; it must be an integer")
    return value
