"""Output files that survive an interrupt: what a checkpoint covers is kept exactly, everything after it is redone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from fgrl.data.output import json_line, publish, sync
from fgrl.data.rows import parquet_file, require_parquet

Record = dict[str, Any]


class Writer(Protocol):
    """Writes records next to `out` and moves them there when all are written.

    Attributes:
        interval: Seconds between checkpoints.
        full: Whether a checkpoint is due whatever the time.
    """

    interval: float

    @property
    def full(self) -> bool:
        """Whether a checkpoint is due whatever the time."""

    def write(self, records: Iterable[Record]) -> None:
        """Add records; they count only after the next checkpoint."""

    def checkpoint(self) -> int:
        """Make everything written so far durable; returns what the constructor takes to continue from here."""

    def finish(self) -> None:
        """Move the complete output to `out`."""

    def close(self) -> None:
        """Release files without finishing."""


class JsonlWriter:
    """One JSON object a line, in `<out>.partial` until it is complete.

    A checkpoint is a length in bytes: continuing cuts the file there, so that a torn last line and any line that no
    checkpoint covers are gone.
    """

    interval = 2.0
    full = False

    def __init__(self, out: Path, checkpoint: int | None = None):
        self._out = out
        self._partial = out.with_name(out.name + ".partial")
        if checkpoint is not None and (not self._partial.exists() or self._partial.stat().st_size < checkpoint):
            raise ValueError(f"{self._partial} must hold the {checkpoint} bytes written so far, and does not.")
        self._file = open(self._partial, "wb" if checkpoint is None else "r+b")  # noqa: SIM115
        self._file.truncate(checkpoint or 0)
        self._file.seek(0, os.SEEK_END)

    def write(self, records: Iterable[Record]) -> None:
        self._file.writelines(map(json_line, records))

    def checkpoint(self) -> int:
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def finish(self) -> None:
        self.checkpoint()
        self._file.close()
        publish(self._partial, self._out)

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def discard(out: Path) -> None:
        """Remove what an interrupted run left."""
        out.with_name(out.name + ".partial").unlink(missing_ok=True)


class ParquetWriter:
    """A Parquet file, written as parts in `<out>.parts` and merged, one row group at a time, when they are complete.

    A Parquet file cannot be continued once its footer is missing, so every checkpoint closes a part of its own and
    moves it into place; a checkpoint is a number of parts, and continuing removes the others.
    """

    interval = 30.0
    _MAX_ROWS = 4096
    _MAX_VALUES = 250_000

    def __init__(self, out: Path, checkpoint: int | None = None):
        self._parquet = require_parquet()
        self._out = out
        self._folder = out.with_name(out.name + ".parts")
        if checkpoint is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._parts = checkpoint or 0
        wanted = {self._part(index).name for index in range(self._parts)}
        found = {path.name for path in self._folder.iterdir()}
        if not wanted <= found:
            raise ValueError(f"{self._folder} must hold the {self._parts} parts written so far, and does not.")
        for name in found - wanted:
            (self._folder / name).unlink()
        self._records: list[Record] = []
        self._values = 0
        self._messages: bool | None = None
        if self._parts:
            with parquet_file(self._part(0)) as first:
                self._messages = str(first.schema_arrow.field("prompt").type) != "string"

    @property
    def full(self) -> bool:
        return len(self._records) >= self._MAX_ROWS or self._values >= self._MAX_VALUES

    def write(self, records: Iterable[Record]) -> None:
        for record in records:
            messages = isinstance(record["prompt"], list)
            if self._messages is None:
                self._messages = messages
            if messages != self._messages:
                raise ValueError(
                    f"line {record['line']}: field 'prompt' must be text in every row or messages in every row of a "
                    "Parquet output: write .jsonl instead."
                )
            self._records.append(record)
            self._values += len(record["original_labels"]) + len(record["edited_labels"]) + len(record["prompt"])

    def checkpoint(self) -> int:
        if self._records:
            import pyarrow as pa

            table = pa.Table.from_pylist([_columnar(record) for record in self._records], schema=_schema(self._records))
            part = self._part(self._parts)
            partial = part.with_suffix(".partial")
            self._parquet.write_table(table, partial)
            sync(partial)
            publish(partial, part)
            self._parts += 1
            self._records, self._values = [], 0
        return self._parts

    def finish(self) -> None:
        self.checkpoint()
        if not self._parts:
            self._write_empty()
        partial = self._folder / "merged.partial"
        with parquet_file(self._part(0)) as first, self._parquet.ParquetWriter(partial, first.schema_arrow) as merged:
            for index in range(self._parts):
                with parquet_file(self._part(index)) as part:
                    for group in range(part.num_row_groups):
                        merged.write_table(part.read_row_group(group))
        sync(partial)
        publish(partial, self._out)
        shutil.rmtree(self._folder)

    def close(self) -> None:
        self._records = []

    @staticmethod
    def discard(out: Path) -> None:
        """Remove what an interrupted run left."""
        shutil.rmtree(out.with_name(out.name + ".parts"), ignore_errors=True)

    def _part(self, index: int) -> Path:
        return self._folder / f"part-{index:06d}.parquet"

    def _write_empty(self) -> None:
        self._parquet.write_table(_schema([]).empty_table(), self._part(0))
        self._parts = 1


def _columnar(record: Record) -> Record:
    """A record as Parquet columns: opcodes are structures there, because a list has one type."""
    return {
        **record,
        "opcodes": [dict(zip(("tag", "i1", "i2", "j1", "j2"), code, strict=True)) for code in record["opcodes"]],
    }


def _schema(records: list[Record]) -> Any:
    """The columns of aligned pairs; the prompt is text, or messages when the first record has messages."""
    import pyarrow as pa

    messages = bool(records) and isinstance(records[0]["prompt"], list)
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    ranges, labels = pa.list_(pa.list_(pa.int64())), pa.list_(pa.uint8())
    span = pa.struct([("start", pa.int64()), ("end", pa.int64())])
    bounds = [(name, pa.int64()) for name in ("i1", "i2", "j1", "j2")]
    ids = [(f"{side}_ids", pa.list_(pa.int64())) for side in ("original", "edited")]
    return pa.schema(
        [
            ("line", pa.int64()),
            ("prompt", pa.list_(turn) if messages else pa.string()),
            ("original", pa.string()),
            ("edited", pa.string()),
            ("error_spans", pa.list_(span)),
            ("distance", pa.int64()),
            ("opcodes", pa.list_(pa.struct([("tag", pa.string()), *bounds]))),
            ("original_tokens", pa.list_(pa.string())),
            ("edited_tokens", pa.list_(pa.string())),
            ("original_offsets", ranges),
            ("edited_offsets", ranges),
            ("original_labels", labels),
            ("edited_labels", labels),
            ("original_edits", labels),
            ("edited_edits", labels),
            ("original_errors", labels),
            *(ids if records and "original_ids" in records[0] else []),
        ]
    )
