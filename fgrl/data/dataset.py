"""Datasets of encoded pairs: one in memory, one that streams."""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from fgrl.data.encode import EncodedPair
from fgrl.data.pairs import EditedPair, PairReader, read_pairs
from fgrl.data.rows import OnError, encode_rows

logger = logging.getLogger(__name__)
Encoder = Callable[[Sequence[EditedPair]], list[EncodedPair]]
T = TypeVar("T")


class PairDataset(Dataset[EncodedPair]):
    """Every encoded pair of a source, in memory: map-style, list-like.

    Reads and encodes the source once. Tokens are kept in flat arrays (4 bytes a token id, 1 byte a flag), which
    data-loader workers share without copying.

    Args:
        source: What `read_pairs` takes, or a `PairReader`.
        encoder: A `PairEncoder`.
        on_error: "raise" or "skip", as in `read_pairs`.
        columns: As in `read_pairs`.
        batch_size: Pairs that are tokenized and aligned at once.

    Attributes:
        skipped: Bad rows passed over.
        errors: Messages of the first of them.
    """

    def __init__(
        self,
        source: Any,
        encoder: Encoder,
        *,
        on_error: OnError = "raise",
        columns: Mapping[str, str] | None = None,
        batch_size: int = 256,
    ):
        reader = _reader(source, on_error, columns)
        self._ids = {name: _Ragged("i") for name in ("prompt_ids", "original_ids", "edited_ids")}
        self._flags = {name: _Ragged("b") for name in ("original_edits", "edited_edits", "original_errors")}
        self._has_errors = array("b")
        for batch in _batches(reader, batch_size):
            for _, pair in encode_rows(reader, encoder, [(pair.line, pair) for pair in batch]):
                for name, column in (*self._ids.items(), *self._flags.items()):
                    column.append(getattr(pair, name) or ())
                self._has_errors.append(pair.original_errors is not None)
        self.skipped = reader.skipped
        self.errors = reader.errors

    def __len__(self) -> int:
        return len(self._has_errors)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"index is {index}; it must be in [-{len(self)}, {len(self)})")
        fields: dict[str, Any] = {name: column[at] for name, column in self._ids.items()}
        fields |= {name: [bool(flag) for flag in column[at]] for name, column in self._flags.items()}
        if not self._has_errors[at]:
            fields["original_errors"] = None
        return EncodedPair(**fields)

    def __iter__(self) -> Iterator[EncodedPair]:
        return (self[at] for at in range(len(self)))


class StreamingPairDataset(IterableDataset[EncodedPair]):
    """Encoded pairs of a source of any size, read as they are needed.

    Memory holds `shuffle_buffer` unencoded pairs and one batch. Data-loader workers divide the rows among them without
    being told. Processes do not: `accelerate` and `transformers.Trainer` divide the stream themselves (set
    `dispatch_batches=False`: their default concatenates batches of different lengths); in a loop of your own, give each
    process `dataset.shard(world_size, rank)`. Each row is then seen exactly once, and every process and worker
    shuffles alike.

    Args:
        source: What `read_pairs` takes, or a `PairReader`.
        encoder: A `PairEncoder`.
        on_error: "raise" or "skip", as in `read_pairs`; a pass that skipped rows logs how many.
        columns: As in `read_pairs`.
        batch_size: Pairs that are tokenized and aligned at once.
        shuffle_buffer: Pairs to draw from at random; 0 keeps the order of the source.
        seed: Seed of the shuffle, together with the epoch (`set_epoch`).

    Attributes:
        skipped: Bad rows passed over in the latest pass of this process (each data-loader worker has its own count).
        errors: Messages of the first of them.
    """

    def __init__(
        self,
        source: Any,
        encoder: Encoder,
        *,
        on_error: OnError = "raise",
        columns: Mapping[str, str] | None = None,
        batch_size: int = 64,
        shuffle_buffer: int = 0,
        seed: int = 0,
    ):
        if shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer is {shuffle_buffer}; it must be at least 0")
        _check_batch_size(batch_size)
        self.reader = _reader(source, on_error, columns)
        self.encoder = encoder
        self.batch_size = batch_size
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.skipped = 0
        self.errors: list[str] = []
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # persistent workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Shuffle differently in each epoch; trainers call this."""
        self._epoch.fill_(epoch)

    def shard(self, num_shards: int, index: int) -> StreamingPairDataset:
        """The rows `index`, `index + num_shards`, ... of this dataset."""
        dataset = self.__class__.__new__(self.__class__)
        dataset.__dict__.update(self.__dict__)
        dataset.reader = self.reader.shard(num_shards, index)
        return dataset

    def __iter__(self) -> Iterator[EncodedPair]:
        worker = get_worker_info()
        reader = self.reader if worker is None else self.reader.shard(worker.num_workers, worker.id)
        pairs: Iterable[EditedPair] = reader
        if self.shuffle_buffer:
            pairs = _shuffled(pairs, self.shuffle_buffer, random.Random(f"{self.seed} {int(self._epoch)}"))
        for batch in _batches(pairs, self.batch_size):
            for _, encoded in encode_rows(reader, self.encoder, [(pair.line, pair) for pair in batch]):
                yield encoded
        self.skipped, self.errors = reader.skipped, reader.errors
        if reader.skipped:
            logger.warning("Skipped %d bad rows of %s; the first: %s", reader.skipped, reader.name, reader.errors[0])


class _Ragged:
    """Rows of different lengths in one flat array."""

    def __init__(self, typecode: str):
        self._values = array(typecode)
        self._ends = array("q", [0])

    def append(self, row: Sequence[int]) -> None:
        self._values.extend(row)
        self._ends.append(len(self._values))

    def __getitem__(self, index: int) -> list[int]:
        return self._values[self._ends[index] : self._ends[index + 1]].tolist()


def _reader(source: Any, on_error: OnError, columns: Mapping[str, str] | None) -> PairReader:
    return source if isinstance(source, PairReader) else read_pairs(source, on_error=on_error, columns=columns)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")


def _batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    _check_batch_size(size)
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def _shuffled(values: Iterable[T], size: int, rng: random.Random) -> Iterator[T]:
    """Draw at random from a buffer of `size` values that is refilled from the stream."""
    buffer: list[T] = []
    for value in values:
        if len(buffer) < size:
            buffer.append(value)
            continue
        at = rng.randrange(size)
        drawn, buffer[at] = buffer[at], value
        yield drawn
    rng.shuffle(buffer)
    yield from buffer
