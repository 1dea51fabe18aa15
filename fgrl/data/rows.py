"""Raw rows of a source, one at a time: JSON lines, a JSON array, Parquet, `datasets`, or any iterable of mappings."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, Literal, TypeVar, cast

from fgrl.data.fields import Row, kind_name, without_fillers

OnError = Literal["raise", "skip"]
T = TypeVar("T")
U = TypeVar("U")
R = TypeVar("R", bound="RowReader[Any]")

_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz")
_MAX_ARRAY_ELEMENT = 64 * 1024 * 1024
_KEPT_ERRORS = 10
_LFS_POINTER = b"version https://git-lfs"


class RowError(ValueError):
    """A row that cannot be used: its message names the line (or row) and the field in one sentence."""


@dataclass(frozen=True)
class RawRow:
    """One row before it is checked.

    Attributes:
        number: Line of a JSON-lines file, or row of any other source; both count from 1.
        content: The bytes of a JSON line, else the row itself.
        columnar: Whether the row comes from columns, where a field that some row has is null in all others.
    """

    number: int
    content: Any
    columnar: bool = False

    def parse(self) -> Row:
        """The row as a mapping; `ValueError` says what is wrong with it.

        JSON lines are decoded here and not before, so that a shard never pays for the rows of another one.
        """
        row = parse_line(self.content) if isinstance(self.content, bytes) else self.content
        if not isinstance(row, Mapping):
            raise ValueError(f"the row is {kind_name(row)}; it must be an object with fields")
        return {name: without_fillers(value) for name, value in row.items()} if self.columnar else row

    @property
    def fingerprint(self) -> bytes:
        """Bytes that are equal for equal rows."""
        return self.content if isinstance(self.content, bytes) else repr(self.content).encode(errors="replace")


class RowReader(Generic[T]):
    """Iterates over the usable rows of `source`, as often as wanted, holding one row in memory at a time.

    Blank lines are ignored. A bad row raises `RowError` (`on_error="raise"`) or is counted and passed over
    (`on_error="skip"`); the rest of the file is never lost. Subclasses say what a usable row is in `convert`.

    Attributes:
        source: What the rows are read from.
        skipped: Bad rows passed over in the latest iteration.
        errors: Messages of the first of them.
    """

    def __init__(self, source: Any, *, on_error: OnError = "raise", columns: Mapping[str, str] | None = None):
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; it must be 'raise' or 'skip'")
        self.source = source
        self.on_error = on_error
        self.columns = dict(columns or {})
        self.skipped = 0
        self.errors: list[str] = []
        self._shard = (1, 0)
        self._spent = False
        self.check_source()

    def check_source(self) -> None:
        """Report an unknown suffix or a missing file here, not at the first row."""
        if isinstance(self.source, (str, os.PathLike)):
            kind_of(self.source)

    def iterate(self) -> Iterator[RawRow]:
        """Every row of the source, unchecked, in order."""
        return iterate_rows(self.source, self.wanted())

    @property
    def unit(self) -> str:
        """What the numbers of rows count."""
        return "line" if is_lines(self.source) else "row"

    @property
    def name(self) -> str:
        """How messages call the source."""
        return Path(self.source).name if isinstance(self.source, (str, os.PathLike)) else type(self.source).__name__

    def shard(self: R, num_shards: int, index: int) -> R:
        """A reader of every `num_shards`-th row, starting at row `index`; the shards of a source partition it.

        Sharding a shard divides it further, so that workers can split what a process was given.
        """
        if num_shards < 1 or not 0 <= index < num_shards:
            raise ValueError(f"index is {index} of {num_shards} shards; it must be in [0, num_shards)")
        reader = self.__class__.__new__(self.__class__)
        reader.__dict__.update(self.__dict__)
        outer, offset = self._shard
        reader._shard = (outer * num_shards, offset + outer * index)
        reader.skipped, reader.errors = 0, []
        return reader

    def convert(self, row: Row, number: int) -> T:
        """Turn a raw row into a usable one, or raise `ValueError` with what is wrong."""
        raise NotImplementedError

    def wanted(self) -> Collection[str] | None:
        """Names of the columns that `convert` looks at; None for all of them."""
        return None

    def raw_rows(self) -> Iterator[RawRow]:
        """The rows of this shard before they are checked."""
        if not isinstance(self.source, (str, os.PathLike)) and iter(self.source) is self.source:
            if self._spent:
                raise ValueError(
                    "source is an iterator that was already read; it must be a list, file or dataset to be read twice"
                )
            self._spent = True
        count, index = self._shard
        for position, row in enumerate(self.iterate()):
            if position % count == index:
                yield row

    def read(self, row: RawRow) -> T | None:
        """Check one row: the usable row, or None when it is bad and `on_error` is "skip"."""
        try:
            return self.convert(row.parse(), row.number)
        except ValueError as error:
            self.fail(row.number, error)
            return None

    def fail(self, number: int, error: ValueError) -> None:
        """Treat row `number` as a bad one: raise `RowError`, or count it, as `on_error` says."""
        message = f"{self.name}, {self.unit} {number}: {error}"
        if self.on_error == "raise":
            raise RowError(message) from error
        self.skipped += 1
        if len(self.errors) < _KEPT_ERRORS:
            self.errors.append(message)

    def numbered(self) -> Iterator[tuple[int, T]]:
        """The usable rows with their numbers."""
        self.skipped, self.errors = 0, []
        for row in self.raw_rows():
            value = self.read(row)
            if value is not None:
                yield row.number, value

    def __iter__(self) -> Iterator[T]:
        return (value for _, value in self.numbered())


def encode_rows(
    reader: RowReader[Any], encode: Callable[[list[T]], list[U]], rows: list[tuple[int, T]]
) -> list[tuple[T, U]]:
    """Encode a batch of numbered rows; a row that `encode` refuses is a bad row, and the others are kept."""
    values = [value for _, value in rows]
    try:
        return list(zip(values, encode(values), strict=True))
    except ValueError as error:
        if len(rows) > 1:
            return [pair for row in rows for pair in encode_rows(reader, encode, [row])]
        reader.fail(rows[0][0], error)
        return []


def kind_of(path: str | os.PathLike[str]) -> Literal["json", "parquet"]:
    """The format of a file, from its name.

    Raises:
        ValueError: The suffix is neither a JSON one nor `.parquet`.
        FileNotFoundError: There is no such file.
    """
    name = os.fspath(path)
    lower = name.lower()
    if not lower.endswith((*_JSON_SUFFIXES, ".parquet")):
        raise ValueError(f"source is {name!r}; it must end in {', '.join(_JSON_SUFFIXES)} or .parquet")
    if not os.path.isfile(name):
        raise FileNotFoundError(f"source is {name!r}, which is not a file; it must be one")
    return "parquet" if lower.endswith(".parquet") else "json"


def is_lines(source: Any) -> bool:
    """Whether rows of `source` are counted in lines of a file."""
    return isinstance(source, (str, os.PathLike)) and kind_of(source) == "json" and not _is_array(source)


def iterate_rows(source: Any, wanted: Collection[str] | None = None) -> Iterator[RawRow]:
    """Every row of `source`, unchecked, in order. Of a Parquet file, only the `wanted` columns are read."""
    if not isinstance(source, (str, os.PathLike)):
        return _mapping_rows(source)
    if kind_of(source) == "parquet":
        return _parquet_rows(source, wanted)
    return _array_rows(source) if _is_array(source) else _line_rows(source)


def open_binary(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading bytes, decompressing `.gz`."""
    if os.fspath(path).lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open(path, "rb")


def parse_line(line: bytes) -> Any:
    """Decode one JSON line, or raise `ValueError` with what is wrong."""
    try:
        return _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8 ({error.reason} at byte {error.start}); it must be") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the line is not valid JSON ({error.msg} at column {error.colno}); it must be") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not usable JSON ({error}); it must be") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a name that it has twice would lose a value."""
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} is there twice in one object")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # made once: `json.loads` makes one a line


@contextmanager
def _whole(path: str | os.PathLike[str]) -> Iterator[None]:
    """A compressed file that is damaged has lost nobody knows how many rows: they cannot be skipped and counted."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RowError(f"{Path(path).name} is damaged ({error}); it must be a whole .gz file") from error


def _line_rows(path: str | os.PathLike[str]) -> Iterator[RawRow]:
    with _whole(path), open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(codecs.BOM_UTF8).strip()  # files put together have one in the middle too
            if text:
                yield RawRow(number, text)


def _check_head(path: str | os.PathLike[str]) -> bytes:
    """The first bytes of a JSON file; `RowError` for files that are something else as a whole."""
    with _whole(path), open_binary(path) as file:
        head = file.read(4096)
        while head and not head.removeprefix(codecs.BOM_UTF8).strip() and (more := file.read(4096)):
            head = head[:3].strip() + more  # white space of any length in front
    if head.startswith(_LFS_POINTER):
        raise RowError(f"{Path(path).name} is a Git LFS pointer; it must be the file itself (git lfs pull)")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or head[:64].count(0) > 16:
        raise RowError(f"{Path(path).name} is UTF-16, UTF-32 or no text; it must be JSON in UTF-8")
    return head


def _is_array(path: str | os.PathLike[str]) -> bool:
    head = _check_head(path)
    if ".jsonl" in os.fspath(path).lower():
        return False
    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _array_rows(path: str | os.PathLike[str]) -> Iterator[RawRow]:
    """Elements of one JSON array; a syntax error, or anything behind it, raises: nothing is left to resume at."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    number = 0

    def broken(problem: str, cause: Exception | None = None) -> RowError:
        error = RowError(f"{Path(path).name}, row {number + 1}: {problem}; it must be one valid JSON array")
        error.__cause__ = cause
        return error

    with _whole(path), io.TextIOWrapper(open_binary(path), encoding="utf-8-sig") as file:
        buffer, at, size, wanted, ended = "", 0, 1 << 16, "[", False
        while True:
            while at < len(buffer) and buffer[at] in " \t\r\n":
                at += 1
            if at < len(buffer):
                if wanted == "end":
                    raise broken("the file goes on behind the array")
                if buffer[at] == "]" and wanted in ("value or ]", ", or ]"):
                    wanted, at = "end", at + 1
                    continue
                if wanted in ("[", ", or ]"):
                    if buffer[at] != wanted[0]:
                        raise broken(f"the array has {buffer[at]!r} where {wanted} belongs")
                    wanted, at = ("value or ]" if wanted == "[" else "value"), at + 1
                    continue
                try:
                    value, end = decoder.raw_decode(buffer, at)
                except json.JSONDecodeError as error:
                    problem = f"the array is not valid JSON ({error.msg})"
                except (ValueError, RecursionError) as error:
                    raise broken(f"the array cannot be read ({error})", error) from error
                else:
                    if end < len(buffer) or ended:  # a number at the end of the buffer may go on
                        number, at, wanted, size = number + 1, end, ", or ]", 1 << 16
                        yield RawRow(number, value)
                        continue
                    problem = ""
            elif wanted == "end" and ended:
                return
            else:
                problem = "the array does not end"
            if ended or len(buffer) - at > _MAX_ARRAY_ELEMENT:
                raise broken(problem)
            try:
                chunk = file.read(size)
            except UnicodeDecodeError as error:
                raise broken("the file is not UTF-8", error) from error
            buffer, at, size, ended = buffer[at:] + chunk, 0, size * 2, not chunk  # doubling bounds the work


def _parquet_rows(path: str | os.PathLike[str], wanted: Collection[str] | None) -> Iterator[RawRow]:
    with parquet_file(path) as file:
        columns = [name for name in file.schema_arrow.names if wanted is None or name in wanted]
        number = 0
        batches = file.iter_batches(batch_size=256, columns=columns)
        while True:
            with _readable(path):
                batch = next(batches, None)
            if batch is None:
                return
            for row in batch.to_pylist():
                number += 1
                yield RawRow(number, row, columnar=True)


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RowError(
            f"{Path(path).name} is damaged or no Parquet file ({' '.join(str(error).split())}); it must be a whole one"
        ) from error


def parquet_file(path: str | os.PathLike[str]) -> Any:
    """Open a Parquet file with pyarrow.

    Raises:
        ImportError: pyarrow is not installed.
        RowError: the file is none, or damaged.
    """
    parquet = require_parquet()
    with _readable(path):
        return parquet.ParquetFile(path, pre_buffer=False)


def require_parquet() -> Any:
    """The module `pyarrow.parquet`.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError("pyarrow is missing; it must be installed for Parquet (pip install 'fgrl[train]')") from error
    return parquet


def _mapping_rows(source: Iterable[Any]) -> Iterator[RawRow]:
    columnar = hasattr(source, "features")  # a dataset of `datasets`
    return (RawRow(number, row, columnar) for number, row in enumerate(source, start=1))
