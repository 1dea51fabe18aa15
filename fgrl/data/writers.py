"""Output files that survive an interrupt: what a checkpoint covers is kept exactly, everything after it is redone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from fgrl.data.fields import without_fillers
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
            raise ValueError(f"{self._partial} is missing or cut; it must hold the {checkpoint} bytes written so far")
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
            raise ValueError(f"{self._folder} is not complete; it must hold the {self._parts} parts written so far")
        for name in found - wanted:
            (self._folder / name).unlink()
        self._records: list[Record] = []
        self._values = 0
        self._prompt = _PromptColumn()
        self._names: list[str] = []
        for index in range(self._parts):
            with parquet_file(self._part(index)) as part:
                self._prompt.join(part.schema_arrow.field("prompt").type)
                self._names = part.schema_arrow.names

    @property
    def full(self) -> bool:
        return len(self._records) >= self._MAX_ROWS or self._values >= self._MAX_VALUES

    def write(self, records: Iterable[Record]) -> None:
        for record in records:
            self._prompt.add(record)
            self._records.append(record)
            self._values += len(record["original_labels"]) + len(record["edited_labels"]) + len(record["prompt"])

    def checkpoint(self) -> int:
        if self._records:
            import pyarrow as pa

            schema = _schema(self._prompt.type, ids="original_ids" in self._records[0])
            self._names = schema.names
            table = pa.Table.from_pylist([_columnar(record) for record in self._records], schema=schema)
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
        schema = _schema(self._prompt.type, ids="original_ids" in self._names)
        with self._parquet.ParquetWriter(partial, schema) as merged:
            for index in range(self._parts):
                with parquet_file(self._part(index)) as part:
                    for group in range(part.num_row_groups):
                        table = part.read_row_group(group)
                        if table.schema != schema:  # messages of a later part have fields that these do not
                            table = type(table).from_pylist(table.to_pylist(), schema=schema)
                        merged.write_table(table)
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
        self._parquet.write_table(_schema(None, ids=False).empty_table(), self._part(0))
        self._parts = 1


class _PromptColumn:
    """The Parquet type of all prompts so far: text, or messages with every field that one of them has.

    What a column of one type cannot hold is refused, so that nothing of a message is lost or changed.
    """

    def __init__(self) -> None:
        self.type: Any = None

    def add(self, record: Record) -> None:
        """Widen the type for the prompt of `record`; `ValueError` where there is none for it."""
        import pyarrow as pa

        prompt = record["prompt"]
        try:
            kind = pa.infer_type([prompt])
            self.join(kind)
            kept = pa.array([prompt], kind).to_pylist()[0]
            if not isinstance(prompt, str) and _canonical(kept) != _canonical(prompt):
                raise ValueError("a value would change")
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise ValueError(
                f"line {record['line']}: field 'prompt' does not fit the column of a Parquet file "
                f"({' '.join(str(error).split())}); it must be text in every row, or messages whose fields "
                "have one type in every row, and out must be .jsonl otherwise"
            ) from error

    def join(self, kind: Any) -> None:
        """Widen the type so that it holds values of the type `kind` too."""
        _refuse_empty(kind)
        self.type = kind if self.type is None else _join(self.type, kind)


def _join(one: Any, other: Any) -> Any:
    """The type that holds the values of two unchanged: structures have the fields of both, null is any type."""
    import pyarrow as pa

    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_join(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = _join(fields[field.name], field.type) if field.name in fields else field.type
        return pa.struct(list(fields.items()))
    raise ValueError(f"{other} after {one}")


def _refuse_empty(kind: Any) -> None:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        if not kind.num_fields:
            raise ValueError("Parquet has no empty object")
        for field in kind:
            _refuse_empty(field.type)
    elif pa.types.is_list(kind):
        _refuse_empty(kind.value_type)


def _canonical(messages: Any) -> str:
    return json.dumps(without_fillers(messages), sort_keys=True)


def _columnar(record: Record) -> Record:
    """A record as Parquet columns: opcodes are structures, because a list has one type, and tools are JSON text."""
    tools = record.get("tools")
    return {
        **record,
        "opcodes": [dict(zip(("tag", "i1", "i2", "j1", "j2"), code, strict=True)) for code in record["opcodes"]],
        "tools": None if tools is None else json.dumps(tools),
    }


def _schema(prompt: Any, *, ids: bool) -> Any:
    """The columns of aligned pairs, with prompts of the type `prompt` (text where there is none yet)."""
    import pyarrow as pa

    ranges, labels = pa.list_(pa.list_(pa.int64())), pa.list_(pa.uint8())
    span = pa.struct([("start", pa.int64()), ("end", pa.int64())])
    bounds = [(name, pa.int64()) for name in ("i1", "i2", "j1", "j2")]
    columns = [
        ("line", pa.int64()),
        ("prompt", pa.string() if prompt is None else prompt),
        ("original", pa.string()),
        ("edited", pa.string()),
        ("error_spans", pa.list_(span)),
        ("tools", pa.string()),
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
    ]
    if ids:
        columns += [(f"{side}_ids", pa.list_(pa.int64())) for side in ("original", "edited")]
    return pa.schema(columns)
