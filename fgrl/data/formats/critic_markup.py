"""CriticMarkup: edits written into the text, as `{++added++}`, `{--removed--}` and `{~~old~>new~~}`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from fgrl.data.fields import Row, check_text
from fgrl.data.formats.records import RecordReader, decoded, edited_row, others
from fgrl.data.rows import RawRow, open_binary

_MARKUP_NAMES = ("critic_markup", "markup", "text", "response")
_OPENING = re.compile(r"\{(\+\+|--|~~|==|>>)")
_CLOSING = {"++": "++}", "--": "--}", "~~": "~~}", "==": "==}", ">>": "<<}"}


class CriticMarkupReader(RecordReader):
    """A text file as one response, or JSON rows with a field of marked-up text (`markup`, or the column of `edited`).

    Highlights (`{==text==}`) become `error_spans`, comments (`{>>text<<}`) the field `comments`; neither is part of
    either side. Markup does not nest.
    """

    fields = ("prompt", "edited")

    @property
    def _is_text(self) -> bool:
        return isinstance(self.source, (str, os.PathLike)) and os.fspath(self.source).lower().endswith(
            (".md", ".markdown", ".txt")
        )

    def check_source(self) -> None:
        if not self._is_text:
            super().check_source()
        elif not os.path.isfile(self.source):
            raise FileNotFoundError(f"source is {os.fspath(self.source)!r}, which is not a file; it must be one")

    @property
    def unit(self) -> str:
        return "row" if self._is_text else super().unit

    def iterate(self) -> Iterator[RawRow]:
        if not self._is_text:
            yield from super().iterate()
            return
        with open_binary(self.source) as file:
            yield RawRow(1, {"block": file.read()})

    def convert(self, row: Row, number: int) -> list[dict[str, Any]]:
        if self._is_text:
            row = {"markup": decoded(row["block"].removeprefix(b"\xef\xbb\xbf"))}
        name, markup = self.found(row, "edited", _MARKUP_NAMES)
        prompt_name, prompt = self.prompt_of(row)
        original, edited, spans, comments = split_markup(check_text(markup, name))
        result = edited_row(prompt, original, edited, rest=others(row, (name, prompt_name)))
        if spans:
            result["error_spans"] = [{"start": start, "end": end} for start, end in spans]
        if comments:
            result["comments"] = comments
        return [result]


def split_markup(text: str) -> tuple[str, str, list[tuple[int, int]], list[str]]:
    """The original, the edited text, the highlighted ranges of the original, and the comments.

    Raises:
        ValueError: Markup that does not end, or that has other markup in it.

    Example:
        >>> split_markup("It is {~~gren~>blue~~}{>>colour<<}{++, she said++}.")
        ('It is gren.', 'It is blue, she said.', [], ['colour'])
    """
    sides = ["", ""]
    spans: list[tuple[int, int]] = []
    comments: list[str] = []
    at = 0
    while (match := _OPENING.search(text, at)) is not None:
        before, kind = text[at : match.start()], match[1]
        end = text.find(_CLOSING[kind], match.end())
        if end < 0:
            raise ValueError(f"the markup at character {match.start()} does not end; it must end in {_CLOSING[kind]!r}")
        inside = text[match.end() : end]
        if kind != ">>" and _OPENING.search(inside):
            raise ValueError(f"the markup at character {match.start()} has other markup in it; it must not nest")
        old, separator, new = inside.partition("~>")
        if kind == "~~" and not separator:
            raise ValueError(f"the replacement at character {match.start()} has no '~>'; it must be {{~~old~>new~~}}")
        removed, added = {"++": ("", inside), "--": (inside, ""), "~~": (old, new), "==": (inside, inside)}.get(
            kind, ("", "")
        )
        sides[0] += before
        if kind == "==":
            spans.append((len(sides[0]), len(sides[0]) + len(inside)))
        elif kind == ">>":
            comments.append(inside.strip())
        sides = [sides[0] + removed, sides[1] + before + added]
        at = end + len(_CLOSING[kind])
    return sides[0] + text[at:], sides[1] + text[at:], spans, comments
