"""Edit alignments: the labels, the batched result of `align_edits`, and its inputs in packed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fgrl import extension

Side = Literal["original", "edited"]
_NO_TOKENS = torch.empty(0, dtype=torch.int64)
_INTEGERS = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)


class EditOp(IntEnum):
    """What an edit did to a token. DELETE occurs on the original side only, INSERT on the edited side only."""

    KEEP = 0
    SUBSTITUTE = 1
    DELETE = 2
    INSERT = 3


class Opcode(NamedTuple):
    """One block of an alignment, in the form of difflib's opcodes and with rapidfuzz's field names.

    `original[src_start:src_end]` became `edited[dest_start:dest_end]`; `tag` is "equal", "replace", "delete" or
    "insert".
    """

    tag: str
    src_start: int
    src_end: int
    dest_start: int
    dest_end: int


@dataclass(frozen=True, eq=False)
class EditAlignment:
    """The alignments of a batch of B pairs, as labels per token. All tensors are on the CPU.

    Attributes:
        distance: `[B]` int64, Levenshtein distance of each pair.
        original_ops: `[N]` uint8, an `EditOp` for every token of the original side: KEEP, SUBSTITUTE or DELETE.
        edited_ops: `[M]` uint8, an `EditOp` for every token of the edited side: KEEP, SUBSTITUTE or INSERT.
        original_cu_seqlens: `[B + 1]` int64; pair i owns `original_ops[cu[i]:cu[i + 1]]`.
        edited_cu_seqlens: `[B + 1]` int64, the same for `edited_ops`.
    """

    distance: Tensor
    original_ops: Tensor
    edited_ops: Tensor
    original_cu_seqlens: Tensor
    edited_cu_seqlens: Tensor

    def __len__(self) -> int:
        return self.distance.numel()

    def opcodes(self, index: int) -> list[Opcode]:
        """How to turn one original sequence into its edited one, as `difflib.SequenceMatcher.get_opcodes` does.

        Adjacent edits form one block: "replace" where both sides are non-empty.

        Args:
            index: which pair; negative counts from the end.

        Returns:
            Blocks that cover both sequences in order.

        Raises:
            IndexError: `index` is outside the batch.

        Example:
            >>> import fgrl
            >>> for block in fgrl.align_edits([[5, 6, 7, 8]], [[5, 9, 8]]).opcodes(0):
            ...     print(*block)
            equal 0 1 0 1
            replace 1 3 1 2
            equal 3 4 2 3
        """
        original = _row(self.original_ops, self.original_cu_seqlens, index)
        edited = _row(self.edited_ops, self.edited_cu_seqlens, index)
        return list(_blocks(original, edited))

    def padded(self, side: Side, length: int | None = None) -> Tensor:
        """The labels of one side as a matrix, padded on the right with KEEP.

        Args:
            side: "original" or "edited".
            length: number of columns; default the longest sequence of that side.

        Returns:
            `[B, length]` uint8.

        Raises:
            ValueError: unknown side, or a sequence longer than `length`.
        """
        if side not in ("original", "edited"):
            raise ValueError(f"side is {side!r}; it must be 'original' or 'edited'")
        ops, bounds = (
            (self.original_ops, self.original_cu_seqlens)
            if side == "original"
            else (self.edited_ops, self.edited_cu_seqlens)
        )
        lengths = bounds.diff()
        longest = int(lengths.max()) if len(self) else 0
        if length is None:
            length = longest
        elif length < longest:
            raise ValueError(f"length is {length}; it must be at least {longest}, the longest {side} sequence")
        padded = ops.new_zeros(len(self), length)
        padded[torch.arange(length) < lengths[:, None]] = ops
        return padded


class Packed(NamedTuple):
    """Token sequences, one after another: sequence i is `tokens[cu_seqlens[i]:cu_seqlens[i + 1]]`.

    `tokens` is int32 or int64 and `cu_seqlens` int64; both are contiguous and on the CPU.
    """

    tokens: Tensor
    cu_seqlens: Tensor


def pack(sequences: Any, name: str) -> Packed:
    """One side of `align_edits` as contiguous CPU tensors; packed int32 and int64 input is not copied.

    Args:
        sequences: a list of token-id sequences (lists, NumPy arrays or 1-D tensors), or a tuple
            `(tokens, cu_seqlens)` of two 1-D tensors or arrays.
        name: what error messages call it.

    Returns:
        The sequences. The values of a given `cu_seqlens` are not checked: `check_bounds` does that.

    Raises:
        ValueError: not such sequences.
    """
    if isinstance(sequences, tuple) and len(sequences) == 2 and all(hasattr(part, "dtype") for part in sequences):
        bounds = _as_tensor(sequences[1], f"{name} cu_seqlens", (torch.int64,))
        if len(bounds) == 0:
            raise ValueError(f"{name} cu_seqlens is empty; it must have one entry more than there are sequences")
        return Packed(_as_tensor(sequences[0], name), bounds)
    if hasattr(sequences, "dtype") or isinstance(sequences, str | bytes) or not isinstance(sequences, Sequence):
        raise ValueError(
            f"{name} is a {type(sequences).__name__}; it must be a list of token-id sequences "
            "or a tuple (tokens, cu_seqlens)"
        )
    compiled = extension.module()
    if compiled is not None and (flat := compiled.flatten(list(sequences))) is not None:
        tokens, lengths = (torch.frombuffer(part, dtype=torch.int64) if part else _NO_TOKENS for part in flat)
        return Packed(tokens, _bounds(lengths))
    try:
        lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    except TypeError:
        raise ValueError(
            f"{name} is a flat sequence; it must be a list of token-id sequences, one for each pair"
        ) from None
    return Packed(_concatenate(sequences, name), _bounds(lengths))


def _concatenate(sequences: Sequence[Any], name: str) -> Tensor:
    """All tokens of all sequences in one tensor."""
    if all(type(sequence) is list or type(sequence) is tuple for sequence in sequences):
        flat = list(chain.from_iterable(sequences))
        try:
            tokens = torch.tensor(flat) if flat else _NO_TOKENS
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} holds something that is not a token id ({error}); all must be integers") from None
        return _as_tensor(tokens, name)
    parts = [
        _as_tensor(sequence if hasattr(sequence, "dtype") or len(sequence) else _NO_TOKENS, f"{name}[{i}]")
        for i, sequence in enumerate(sequences)
    ]
    if len({part.dtype for part in parts}) > 1:
        parts = [part.long() for part in parts]
    return torch.cat(parts) if parts else _NO_TOKENS


def _as_tensor(values: Any, name: str, dtypes: tuple[torch.dtype, ...] = (torch.int32, torch.int64)) -> Tensor:
    """`values`, a tensor or NumPy array, as a contiguous 1-D CPU tensor of one of `dtypes`, by default the last."""
    if type(values) is Tensor and values.dtype in dtypes and values.is_cpu and values.dim() == 1:
        return values.contiguous()
    flags = getattr(values, "flags", None)
    if flags is not None and not (flags.c_contiguous and flags.writeable):
        # PyTorch refuses arrays that run backwards, and warns of read-only ones, such as Arrow's.
        values = values.copy()
    try:
        tensor: Tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no tensor or array ({error}); it must hold token ids") from None
    if tensor.dtype not in _INTEGERS:
        raise ValueError(f"{name} has dtype {tensor.dtype}; it must hold integers: int32 or int64")
    if tensor.dim() != 1:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be 1-D")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; it must be on the CPU")
    if tensor.dtype not in dtypes:
        tensor = tensor.to(dtypes[-1])
    return tensor.contiguous()


def _bounds(lengths: Tensor) -> Tensor:
    """`cu_seqlens` of sequences of these lengths."""
    bounds = lengths.new_zeros(lengths.numel() + 1)
    torch.cumsum(lengths, 0, out=bounds[1:])
    return bounds


def check_bounds(sequences: Packed, name: str) -> None:
    """Checks the values of `cu_seqlens`.

    Raises:
        ValueError: it does not start at 0, end at the number of tokens, or decreases.
    """
    tokens, bounds = sequences
    if int(bounds[0]) != 0:
        raise ValueError(f"{name} cu_seqlens starts at {int(bounds[0])}; it must start at 0")
    if int(bounds[-1]) != tokens.numel():
        raise ValueError(
            f"{name} cu_seqlens ends at {int(bounds[-1])}; it must end at the number of tokens, {tokens.numel()}"
        )
    negative = (bounds.diff() < 0).nonzero()
    if negative.numel():
        raise ValueError(f"{name} cu_seqlens decreases after entry {int(negative[0])}; it must not decrease")


def _row(ops: Tensor, bounds: Tensor, index: int) -> bytes:
    """The labels of one sequence, a byte each."""
    batch = bounds.numel() - 1
    if not -batch <= index < batch:
        raise IndexError(f"index is {index}; it must be in [{-batch}, {batch})")
    index %= batch
    return bytes(ops[int(bounds[index]) : int(bounds[index + 1])].tolist())


def _blocks(original: bytes, edited: bytes) -> Iterator[Opcode]:
    """Opcodes from the labels of both sides of a pair; kept tokens correspond in order."""
    i = j = 0
    while i < len(original) or j < len(edited):
        i1, j1 = i, j
        while i < len(original) and j < len(edited) and original[i] == edited[j] == EditOp.KEEP:
            i, j = i + 1, j + 1
        if i > i1:
            yield Opcode("equal", i1, i, j1, j)
            i1, j1 = i, j
        while i < len(original) and original[i] != EditOp.KEEP:
            i += 1
        while j < len(edited) and edited[j] != EditOp.KEEP:
            j += 1
        if i > i1 or j > j1:
            tag = "insert" if i == i1 else "delete" if j == j1 else "replace"
            yield Opcode(tag, i1, i, j1, j)
