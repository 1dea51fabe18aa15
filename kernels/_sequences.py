"""Where sequences lie in a flat tensor: rows of one length, or packed with `cu_seqlens`."""

from __future__ import annotations

import triton
import triton.language as tl

ALIGNMENT = tl.constexpr(16)  # of the first token of a block, so that a thread loads several tokens at once


@triton.jit
def start_of(sequence, cu_seqlens_ptr, length):
    """The sequence's first token."""
    IS_PACKED: tl.constexpr = cu_seqlens_ptr is not None
    if IS_PACKED:
        return tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    else:
        return sequence.to(tl.int64) * length


@triton.jit
def sequence_at(index, cu_seqlens_ptr, length, batch, PIECE: tl.constexpr = None):
    """The sequence that a token is in; with PIECE tokens to a block, the one that a piece is of, by its number.

    A piece is what a sequence occupies of one block of the flat tokens, and piece p of sequence s lies in block p - s.
    So their numbers end below `tokens // PIECE + batch`, however long each sequence is, which the host does not know.
    (A few belong to no piece and come out empty.)
    """
    sequence = tl.full([], 0, tl.int32)  # the last one that does not start after the index
    beyond = sequence + batch
    while beyond - sequence > 1:
        middle = (sequence + beyond) // 2
        start = start_of(middle, cu_seqlens_ptr, length)
        if PIECE is not None:
            start = start // PIECE + middle
        sequence = tl.where(start <= index, middle, sequence)
        beyond = tl.where(start <= index, beyond, middle)
    return sequence


@triton.jit
def piece(number, cu_seqlens_ptr, length, batch, BLOCK: tl.constexpr):
    """A piece's sequence, the start of its block, its own first token and the one after its last."""
    sequence = sequence_at(number, cu_seqlens_ptr, length, batch, BLOCK)
    start = (number - sequence).to(tl.int64) * BLOCK
    begin = tl.maximum(start, start_of(sequence, cu_seqlens_ptr, length))
    end = tl.minimum(start + BLOCK, start_of(sequence + 1, cu_seqlens_ptr, length))
    return sequence, start, begin, end


@triton.jit
def lanes_of(start, begin, end, BLOCK: tl.constexpr):
    """The first lane of the block at `start` that holds one of the tokens [begin, end), and the one after the last."""
    first = tl.maximum(begin, start) - start
    beyond = tl.minimum(end, start + BLOCK) - start
    return first.to(tl.int32), beyond.to(tl.int32)


@triton.jit
def among(first, beyond, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    return (lanes >= first) & (lanes < beyond)


@triton.jit
def store(ptr, start, block, first, beyond):
    """Stores the lanes from `first` to `beyond`: at once where these are all."""
    BLOCK: tl.constexpr = block.shape[0]
    ptrs = ptr + start + tl.arange(0, BLOCK)
    if beyond - first == BLOCK:
        tl.store(ptrs, block)
    else:
        tl.store(ptrs, block, mask=among(first, beyond, BLOCK))
