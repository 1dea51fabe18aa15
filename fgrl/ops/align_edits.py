"""`fgrl.align_edits`: which tokens an edit kept, substituted, deleted and inserted."""

from __future__ import annotations

from contextlib import suppress
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fgrl import backend
from fgrl.alignment import EditAlignment, Packed, check_bounds, pack
from fgrl.ops._library import LIBRARY

_CPU = torch.device("cpu")
LIBRARY.define(
    "align_edits(Tensor original, Tensor original_cu_seqlens, Tensor edited, Tensor edited_cu_seqlens, "
    "int num_threads, int algorithm=0) -> (Tensor distance, Tensor original_ops, Tensor edited_ops)"
)


@torch.library.register_fake("fgrl::align_edits", lib=LIBRARY)
def _align_edits_fake(
    original: Tensor,
    original_cu_seqlens: Tensor,
    edited: Tensor,
    edited_cu_seqlens: Tensor,
    num_threads: int,
    algorithm: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        original_cu_seqlens.new_empty(original_cu_seqlens.shape[0] - 1),
        original.new_empty(original.shape[0], dtype=torch.uint8),
        edited.new_empty(edited.shape[0], dtype=torch.uint8),
    )


def align_edits(original: Any, edited: Any, *, num_threads: int | None = None) -> EditAlignment:
    """Aligns each original sequence with its edited one at minimum edit distance (Levenshtein, unit costs).

    Among the cheapest alignments it takes one with few runs of edits, as far left as they go;
    `fgrl.reference.align_edits` states the rule. The labels do not depend on the backend, the integer width or the
    number of threads.

    Args:
        original: B token-id sequences: a list of lists, NumPy arrays or 1-D tensors; or a tuple `(tokens, cu_seqlens)`
            of 1-D tensors or arrays, `tokens [N]` and `cu_seqlens [B + 1]`, which is not copied when `tokens` is
            int32 or int64 and, for an array, writable.
        edited: B token-id sequences, in any of these forms.
        num_threads: threads over the pairs, at most torch's own number; None takes `torch.get_num_threads()`.

    Returns:
        An `EditAlignment` of B pairs.

    Raises:
        ValueError: an argument that is not such sequences (wrong form, dtype, shape or device, bad `cu_seqlens`),
            sides of different length, or `num_threads` below 1.

    Example:
        >>> import fgrl
        >>> alignment = fgrl.align_edits([[5, 6, 7, 8]], [[5, 9, 8]])
        >>> alignment.distance, alignment.original_ops
        (tensor([2]), tensor([0, 1, 2, 0], dtype=torch.uint8))
    """
    if num_threads is not None and not (isinstance(num_threads, Integral) and num_threads >= 1):
        raise ValueError(f"num_threads is {num_threads!r}; it must be at least 1 and a whole number, or None")
    implementation = backend.resolve("align_edits", _CPU)
    if implementation == "cpp" and _is_packed(original) and _is_packed(edited):
        with suppress(RuntimeError):  # the op checks everything, fast; what it refuses is looked into below
            return _run(original, edited, num_threads)
    a, b = pack(original, "original"), pack(edited, "edited")
    if a.cu_seqlens.shape != b.cu_seqlens.shape:
        raise ValueError(
            f"original has {a.cu_seqlens.numel() - 1} sequences and edited has {b.cu_seqlens.numel() - 1}; "
            "they must have the same number"
        )
    if implementation == "reference":
        from fgrl import reference

        check_bounds(a, "original")
        check_bounds(b, "edited")
        return reference.align_edits(tuple(a), tuple(b))
    if a.tokens.dtype != b.tokens.dtype:
        a, b = Packed(a.tokens.long(), a.cu_seqlens), Packed(b.tokens.long(), b.cu_seqlens)
    try:
        return _run(a, b, num_threads)
    except RuntimeError:
        check_bounds(a, "original")
        check_bounds(b, "edited")
        raise


def _is_packed(sequences: Any) -> bool:
    """Whether these look like tensors that need no conversion."""
    return (
        type(sequences) is tuple
        and len(sequences) == 2
        and type(sequences[0]) is Tensor
        and type(sequences[1]) is Tensor
        and sequences[1].dtype is torch.int64
    )


def _run(original: tuple[Tensor, Tensor], edited: tuple[Tensor, Tensor], num_threads: int | None) -> EditAlignment:
    distance, original_ops, edited_ops = torch.ops.fgrl.align_edits(*original, *edited, num_threads or 0)
    return EditAlignment(distance, original_ops, edited_ops, original[1], edited[1])
