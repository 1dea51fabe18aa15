"""`import_edits`: the records of another format as rows of edited pairs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fgrl.data.formats.argilla import ArgillaReader
from fgrl.data.formats.critic_markup import CriticMarkupReader
from fgrl.data.formats.label_studio import LabelStudioReader
from fgrl.data.formats.m2 import M2Reader
from fgrl.data.formats.parallel import AlignedReader, TsvReader
from fgrl.data.formats.preferences import PreferenceReader
from fgrl.data.formats.records import Options, RecordReader
from fgrl.data.output import check_outputs, json_line, open_output
from fgrl.data.rows import OnError

FORMATS: dict[str, type[RecordReader]] = {
    "label-studio": LabelStudioReader,
    "argilla": ArgillaReader,
    "m2": M2Reader,
    "tsv": TsvReader,
    "aligned": AlignedReader,
    "critic-markup": CriticMarkupReader,
    "preferences": PreferenceReader,
}
Watch = Callable[[Iterator[list[dict[str, Any]]]], Iterator[list[dict[str, Any]]]]


@dataclass
class ImportReport:
    """What `import_edits` did.

    Attributes:
        records: Records read.
        rows: Rows written, one an annotator.
        unchanged: Rows among them whose edited text is the original.
        passed_over: Records and annotations that hold no edit that was asked for, by the reason.
        skipped: Bad records.
        errors: Messages of the first of them.
    """

    records: int = 0
    rows: int = 0
    unchanged: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    errors: list[str] = field(default_factory=list)


def import_edits(
    format: str,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: Options | None = None,
    on_error: OnError = "raise",
    watch: Watch | None = None,
) -> ImportReport:
    """Write the records of `source` to `out`, JSON lines that `fgrl.data.read_pairs` reads, at constant memory.

    A row has `prompt`, `original`, `edited`, and where the format knows them `annotator`, `error_spans`, `id` and the
    record's other fields. Several annotators of one response are several rows, next to each other.

    Args:
        format: One of `FORMATS`.
        source: The file of records.
        out: Path of the rows, ending in `.jsonl`, or `-` for standard output; it appears whole or not at all.
        options: What the format needs to be told.
        on_error: "raise" stops at the first bad record, "skip" passes over bad ones and counts them.
        watch: Gets the rows of each record and returns them again (a progress bar).

    Raises:
        ValueError: Unknown format or option, or a bad record (`RowError`, which names it).
        FileNotFoundError: There is no such file.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    if os.fspath(out) != "-" and not os.fspath(out).endswith(".jsonl"):
        raise ValueError(f"out is {os.fspath(out)!r}; it must end in .jsonl")
    options = options or Options()
    check_outputs({"out": out}, {"source": source, "edited": options.edited_file, "prompts": options.prompt_file})
    reader = FORMATS[format](source, options, on_error=on_error)
    report = ImportReport()
    with open_output(out) as file:
        records = iter(reader)
        for rows in records if watch is None else watch(records):
            report.records += 1
            for row in rows:
                report.rows += 1
                report.unchanged += row["original"] == row["edited"]
                file.write(json_line(row))
    report.passed_over, report.skipped, report.errors = reader.passed_over, reader.skipped, reader.errors
    return report
