"""Originals and edits side by side: columns of a TSV file, or files whose lines belong together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any

from fgrl.data.formats.records import (
    EDITED_NAMES,
    ORIGINAL_NAMES,
    PROMPT_NAMES,
    Options,
    TextReader,
    decoded,
    edited_row,
    numbered_lines,
)
from fgrl.data.rows import OnError, RowError

_ALIASES = {"prompt": PROMPT_NAMES, "original": ORIGINAL_NAMES, "edited": EDITED_NAMES, "annotator": ()}


class TsvReader(TextReader):
    """Lines of fields between tabs, nothing quoted.

    The first line is a header where it names the original and the edited text (as the columns of the options say, or
    by one of the usual names). Without a header the columns of the options are numbers from 1, and a file without any
    has prompt, original, edited, or original, edited.
    """

    fields = ("prompt", "original", "edited", "annotator")

    def __init__(self, source: Any, options: Options, *, on_error: OnError = "raise"):
        super().__init__(source, options, on_error=on_error)
        first = next((line for _, line in numbered_lines(source)), b"")
        header = decoded(first).split("\t")
        self._places = self._named(header)
        self._names: list[str] | None = header if self._places is not None else None
        if self._places is None:
            self._places = self._numbered(len(header))
        self._width = len(header)
        if "prompt" not in self._places and options.prompt is None:
            raise ValueError("the prompt is missing; it must be a column, or given for all rows")

    def _named(self, header: list[str]) -> dict[str, int] | None:
        """Where the fields are, by the header; None where the first line is none."""
        places = {}
        for field, aliases in _ALIASES.items():
            names = (self.columns[field],) if field in self.columns else (field, *aliases)
            place = next((header.index(name) for name in names if name in header), None)
            if place is not None:
                places[field] = place
        return places if {"original", "edited"} <= places.keys() else None

    def _numbered(self, width: int) -> dict[str, int]:
        if not self.columns and width in (2, 3):
            return {field: place for place, field in enumerate(("prompt", "original", "edited")[-width:])}
        if not self.columns:
            raise ValueError(f"the first line has {width} columns; it must have 2 or 3, or columns must be named")
        for field, name in self.columns.items():
            if not (name.isdecimal() and 1 <= int(name) <= width):
                raise ValueError(f"columns[{field!r}] is {name!r}; it must be in the first line, or 1 to {width}")
        if not {"original", "edited"} <= self.columns.keys():
            raise ValueError("columns is without 'original' or 'edited'; it must have both where there is no header")
        return {field: int(name) - 1 for field, name in self.columns.items()}

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        for number, line in numbered_lines(self.source):
            if line.strip() and not (number == 1 and self._names is not None):
                yield number, line

    def parse(self, text: str, number: int) -> list[dict[str, Any]]:
        cells = text.split("\t")
        if len(cells) != self._width:
            raise ValueError(f"the line has {len(cells)} columns; it must have {self._width}, as the first line")
        places = self._places or {}
        values = {field: cells[place] for field, place in places.items()}
        annotator = values.get("annotator")
        if not self.wants(annotator):
            return []
        rest = {
            name: cell
            for place, (name, cell) in enumerate(zip(self._names or [], cells, strict=False))
            if place not in places.values()
        }
        prompt = values.get("prompt", self.options.prompt)
        return [edited_row(prompt, values["original"], values["edited"], annotator=annotator, rest=rest)]


class AlignedReader(TextReader):
    """Files whose lines belong together: originals, edits, and perhaps prompts."""

    fields = ()

    def __init__(self, source: Any, options: Options, *, on_error: OnError = "raise"):
        super().__init__(source, options, on_error=on_error)
        if options.edited_file is None:
            raise ValueError("the file of edits is missing; it must be given beside that of the originals")
        if options.prompt_file is None and options.prompt is None:
            raise ValueError("the prompt is missing; it must be a file, or given for all rows")

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        paths = [self.source, self.options.edited_file, self.options.prompt_file]
        with ExitStack() as files:
            lines = []
            for path in paths:
                if path is not None:
                    reader = numbered_lines(path)
                    files.callback(reader.close)  # type: ignore[attr-defined]
                    lines.append(reader)
            for number, some in enumerate(zip_longest(*lines), start=1):
                if None in some:
                    raise RowError(f"{self.name} and its other files differ in length at line {number}; they must not")
                yield number, b"\n".join(line for _, line in some)

    def parse(self, text: str, number: int) -> list[dict[str, Any]]:
        original, edited, *prompt = text.split("\n")
        return [edited_row(prompt[0] if prompt else self.options.prompt, original, edited)]
