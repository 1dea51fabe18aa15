"""Responses that somebody is to edit: a prompt, a response, perhaps a better one, and the row's other fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fgrl.data.conversations import Message, check_tools, split_response
from fgrl.data.fields import Row, check_columns, check_text, find_field, missing_field
from fgrl.data.pairs import PairReader
from fgrl.data.rows import OnError, RowReader

RESPONSE_NAMES = ("completion", "text", "answer")
_ORIGINAL_NAMES = ("response", "rejected", *RESPONSE_NAMES)
_OTHER_NAMES = ("chosen", "better")


@dataclass(frozen=True)
class Response:
    """One checked row.

    Attributes:
        prompt: Text, or chat messages before the response.
        original: The response as it is.
        better: A better response to the same prompt (the preferred one of a pair); None where there is none.
        edited: An edit that the row already has; None where it has none.
        rest: The row's other fields.
        line: Line of the file, or row of any other source; counts from 1.
    """

    prompt: str | list[Message]
    original: str
    better: str | None = None
    edited: str | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)
    line: int = 0


class ResponseReader(RowReader[Response]):
    """Rows with `prompt` and `original` (or `response`, `rejected`, ...), and perhaps `chosen` and `edited`.

    Args:
        source: As in `fgrl.data.read_pairs`.
        on_error: "raise" or "skip".
        columns: Where a field (prompt, original, better, edited) is called something else.
    """

    def __init__(self, source: Any, *, on_error: OnError = "raise", columns: Mapping[str, str] | None = None):
        check_columns(columns, ("prompt", "original", "better", "edited"))
        super().__init__(source, on_error=on_error, columns=columns)
        self._prompts = PairReader([], columns={k: v for k, v in self.columns.items() if k == "prompt"})

    def convert(self, row: Row, number: int) -> Response:
        found = find_field(row, "original", _ORIGINAL_NAMES, self.columns)
        if found is None:
            raise ValueError(missing_field(row, "original", self.columns) + " (or 'response')")
        used, turns = {found[0], "prompt", "question"}, {}
        if isinstance(found[1], list):
            turns[found[0]], original = split_response(found[1], found[0])
        else:
            original = check_text(found[1], found[0])
        texts: dict[str, str | None] = {}
        for name, aliases in (("better", _OTHER_NAMES), ("edited", ())):
            other = find_field(row, name, aliases, self.columns)
            texts[name] = None
            if other is not None and other[1] is not None:
                used.add(other[0])
                texts[name] = (
                    split_response(other[1], other[0])[1]
                    if isinstance(other[1], list)
                    else check_text(other[1], other[0])
                )
        prompt = self._prompts.joined_prompt(row, turns)
        check_tools(row.get("tools"), "tools")
        used |= set(self.columns.values())
        rest = {str(name): value for name, value in row.items() if name not in used}
        return Response(prompt, original, texts["better"], texts["edited"], rest, number)


def prompt_text(prompt: str | list[Message]) -> str:
    """A prompt as one text to show."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role', '')}: {message.get('content') or ''}" for message in prompt)
