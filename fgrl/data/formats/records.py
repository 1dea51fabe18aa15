"""What all formats share: records that become several rows, and files of text that are read block by block."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fgrl.data.conversations import check_prompt
from fgrl.data.fields import Row, check_columns, check_text, find_field, missing_field
from fgrl.data.rows import OnError, RawRow, RowReader, open_binary

PROMPT_NAMES = ("question", "instruction", "source", "src", "input")
ORIGINAL_NAMES = ("response", "rejected", "completion", "answer", "mt", "text")
EDITED_NAMES = ("chosen", "pe", "post_edit", "correction")


@dataclass(frozen=True)
class Options:
    """What an import may be told.

    Attributes:
        columns: Where a field is called something else: `{"original": "draft"}`.
        prompt: The prompt of every row of a format that has none; None where the format brings its own.
        annotators: Take the edits of these annotators only; empty for all of them.
        max_edit_share: Preference pairs that differ in a larger share of their words are no edits.
        edited_file: The other side of an aligned file.
        prompt_file: The prompts of an aligned file.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    annotators: tuple[str, ...] = ()
    max_edit_share: float = 0.3
    edited_file: str | os.PathLike[str] | None = None
    prompt_file: str | os.PathLike[str] | None = None


class RecordReader(RowReader[list[dict[str, Any]]]):
    """Records of a format, each as rows of edited pairs.

    Attributes:
        passed_over: How many records or annotations hold no edit that was asked for, by the reason.
    """

    fields: tuple[str, ...] = ("prompt", "original", "edited")

    def __init__(self, source: Any, options: Options, *, on_error: OnError = "raise"):
        check_columns(options.columns, self.fields)
        self.options = options
        self.passed_over: dict[str, int] = {}
        super().__init__(source, on_error=on_error, columns=options.columns)

    def pass_over(self, reason: str, count: int = 1) -> None:
        """Count what is no edit and no mistake either."""
        self.passed_over[reason] = self.passed_over.get(reason, 0) + count

    def wants(self, annotator: str | None) -> bool:
        """Whether the edits of `annotator` were asked for; those of others are counted."""
        if not self.options.annotators or annotator in self.options.annotators:
            return True
        self.pass_over("by other annotators")
        return False

    def found(self, row: Row, field: str, aliases: tuple[str, ...]) -> tuple[str, Any]:
        """The column that holds `field`, and its value; `ValueError` where there is none."""
        found = find_field(row, field, aliases, self.columns)
        if found is None:
            raise ValueError(missing_field(row, field, self.columns))
        return found

    def prompt_of(self, row: Row) -> tuple[str | None, Any]:
        """The column of the prompt, None where it is that of all rows, and the prompt."""
        found = find_field(row, "prompt", PROMPT_NAMES, self.columns)
        if found is not None and found[1] is not None:
            return found[0], check_prompt(found[1], found[0])
        if self.options.prompt is None:
            raise ValueError(missing_field(row, "prompt", self.columns) + ", or one prompt for all of them")
        return None, self.options.prompt


class TextReader(RecordReader):
    """A format that is plain text: `blocks` says where its records begin and end."""

    def check_source(self) -> None:
        if not isinstance(self.source, (str, os.PathLike)):
            raise ValueError(f"source is of type {type(self.source).__name__}; it must be the path of a file")
        if not os.path.isfile(self.source):
            raise FileNotFoundError(f"source is {os.fspath(self.source)!r}, which is not a file; it must be one")

    @property
    def unit(self) -> str:
        return "line"

    def iterate(self) -> Iterator[RawRow]:
        for number, block in self.blocks():
            yield RawRow(number, {"block": block})

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """Records with the lines they begin at."""

    def convert(self, row: Row, number: int) -> list[dict[str, Any]]:
        return self.parse(decoded(row["block"]), number)

    @abstractmethod
    def parse(self, text: str, number: int) -> list[dict[str, Any]]:
        """The rows of one record."""


def numbered_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Lines of a file, `.gz` too, without their ends; other characters that end lines for Unicode are text."""
    with open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            text = line.removesuffix(b"\n").removesuffix(b"\r")
            yield number, text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text


def decoded(block: bytes) -> str:
    """`block` as text; `ValueError` where it is not UTF-8."""
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the text is not UTF-8 ({error.reason} at byte {error.start}); it must be") from error


def edited_row(
    prompt: Any, original: str, edited: str, *, annotator: str | None = None, rest: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A row of the output; `rest` are further fields of the record, of which the row's own names are kept out."""
    row = {"prompt": prompt, "original": check_text(original, "original"), "edited": check_text(edited, "edited")}
    if annotator is not None:
        row["annotator"] = annotator
    taken = [name for name in rest or {} if name in row]
    if taken:
        raise ValueError(f"field {taken[0]!r} is in the record besides; it must have another name, as the row has it")
    return {**row, **(rest or {})}


def others(row: Row, used: tuple[str | None, ...]) -> dict[str, Any]:
    """The fields of `row` that are not in `used`."""
    return {str(name): value for name, value in row.items() if name not in used}
