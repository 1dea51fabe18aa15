"""Preference pairs that happen to be close enough to count as edits."""

from __future__ import annotations

from typing import Any

from fgrl.data.fields import Row
from fgrl.data.formats.records import Options, RecordReader, edited_row, others
from fgrl.data.pairs import PairReader
from fgrl.data.rows import OnError
from fgrl.data.share import edit_shares

_USED = ("prompt", "question", "original", "rejected", "edited", "chosen", "tools", "error_spans")


class PreferenceReader(RecordReader):
    """Rows with `chosen` and `rejected` (text, or messages): kept where they differ in few words, counted otherwise."""

    def __init__(self, source: Any, options: Options, *, on_error: OnError = "raise"):
        super().__init__(source, options, on_error=on_error)
        self._pairs = PairReader([], columns=self.columns)

    def convert(self, row: Row, number: int) -> list[dict[str, Any]]:
        pair = self._pairs.convert(row, number)
        share = edit_shares([pair.original], [pair.edited])[0]
        if pair.original == pair.edited:
            self.pass_over("equal on both sides")
            return []
        if share > self.options.max_edit_share:
            self.pass_over(f"changed in more than {self.options.max_edit_share:g} of their words")
            return []
        rest = others(row, (*_USED, *self.columns.values()))
        result = edited_row(pair.prompt, pair.original, pair.edited, rest=rest)
        return [result if pair.tools is None else {**result, "tools": pair.tools}]
