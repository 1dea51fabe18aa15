"""M2, the format of ERRANT and of the shared tasks on grammatical error correction."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from fgrl.data.formats.records import TextReader, edited_row, numbered_lines

_NO_EDIT = ("noop",)
_NOTHING = "-NONE-"
Edit = tuple[int, int, str]


class M2Reader(TextReader):
    """Blocks of a tokenized sentence (`S`) and the edits of its annotators (`A`): one row an annotator.

    The texts are the tokens joined by single spaces. `error_spans` are the places of the annotator's edits in the
    original, also of errors that were found and not corrected. A sentence without any `A` line is unchanged, and has
    no annotator.
    """

    fields = ("prompt",)

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        start, lines = 0, list[bytes]()
        for number, line in numbered_lines(self.source):
            if line.strip():
                start, lines = start or number, [*lines, line]
            elif lines:
                yield start, b"\n".join(lines)
                start, lines = 0, []
        if lines:
            yield start, b"\n".join(lines)

    def parse(self, text: str, number: int) -> list[dict[str, Any]]:
        first, *lines = text.split("\n")
        if first != "S" and not first.startswith("S "):
            raise ValueError(f"the block begins with {first[:20]!r}; it must begin with 'S ' and a sentence")
        tokens = first[2:].split(" ") if first[2:] else []
        edits: dict[str, list[Edit]] = {}
        for line in lines:
            annotator, edit = _edit(line, len(tokens))
            edits.setdefault(annotator, []).extend([] if edit is None else [edit])
        prompt = self.options.prompt
        if prompt is None:
            raise ValueError("the prompt is missing; it must be given for all rows, as M2 has none")
        if not edits:
            return [edited_row(prompt, first[2:], first[2:])] if self.wants(None) else []
        return [
            _row(prompt, tokens, sorted(some, key=lambda edit: edit[:2]), annotator)
            for annotator, some in edits.items()
            if self.wants(annotator)
        ]


def _edit(line: str, count: int) -> tuple[str, Edit | None]:
    """The annotator of an `A` line and its edit, None where the sentence is correct."""
    if not line.startswith("A "):
        raise ValueError(f"the block has the line {line[:20]!r}; it must begin with 'A ' and an edit")
    span, *fields = line[2:].split("|||")
    bounds = span.split()
    if len(fields) < 5 or len(bounds) != 2 or not all(bound.removeprefix("-").isdecimal() for bound in bounds):
        raise ValueError(
            f"the edit {line[:40]!r} cannot be read; it must be 'A start end|||type|||correction|||...|||annotator'"
        )
    start, end = map(int, bounds)
    kind, annotator = fields[0], fields[-1].strip()
    correction = "|||".join(fields[1:-3]).split("||")[0]  # alternatives, best first
    if kind in _NO_EDIT or (start, end) == (-1, -1):
        return annotator, None
    if not 0 <= start <= end <= count:
        raise ValueError(f"the edit of tokens {start} to {end} is outside; it must lie within the {count} tokens")
    return annotator, (start, end, "" if correction == _NOTHING else correction.strip())


def _row(prompt: str, tokens: list[str], edits: list[Edit], annotator: str) -> dict[str, Any]:
    for (_, end, _), (start, _, _) in pairwise(edits):
        if start < end:
            raise ValueError(f"annotator {annotator!r} has edits that overlap at token {start}; they must not")
    original = " ".join(tokens)
    starts = [0]
    for token in tokens:
        starts.append(starts[-1] + len(token) + 1)
    result, at = [], 0
    for start, end, correction in edits:
        result += tokens[at:start] + ([correction] if correction else [])
        at = end
    row = edited_row(prompt, original, " ".join(result + tokens[at:]), annotator=annotator)
    row["error_spans"] = [{"start": starts[start], "end": starts[end] - 1} for start, end, _ in edits if end > start]
    return row
