"""Blocks of flat tokens, whatever the sequences, and sums over them.

A load whose bounds are not known to be multiples of anything is split into single elements. So the load of a full block
has none, and tokens under the mask are dropped only after it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_block(ptrs, mask_ptr, start, size, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Which tokens of the block at `start` are valid, and each tensor's: 0 where one is not, or there is no tensor."""
    if start + BLOCK <= size:
        block = _load_block(ptrs, mask_ptr, start, None, DTYPE, BLOCK)
    else:
        block = _load_block(ptrs, mask_ptr, start, tl.arange(0, BLOCK) < size - start, DTYPE, BLOCK)
    return block


@triton.jit
def _load_block(ptrs, mask_ptr, start, inside, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    HAS_MASK: tl.constexpr = mask_ptr is not None
    if HAS_MASK:
        valid = _load(mask_ptr, start, inside, BLOCK) != 0
    elif inside is None:
        valid = tl.full([BLOCK], True, tl.int1)
    else:
        valid = inside
    return valid, [_load_tokens(ptr, start, inside, valid, DTYPE) for ptr in ptrs]  # [BLOCK] each


@triton.jit
def _load_tokens(ptr, start, inside, valid, DTYPE: tl.constexpr):
    IS_GIVEN: tl.constexpr = ptr is not None
    if IS_GIVEN:
        return tl.where(valid, _load(ptr, start, inside, valid.shape[0]).to(DTYPE), 0.0)
    else:
        return tl.zeros(valid.shape, DTYPE)


@triton.jit
def _load(ptr, start, inside, BLOCK: tl.constexpr):
    return tl.load(ptr + start + tl.arange(0, BLOCK), mask=inside, other=None if inside is None else 0)


@triton.jit
def store_block(ptr, start, size, block):
    """Stores the block at `start`, as far as there are tokens."""
    lanes = tl.arange(0, block.shape[0])
    if start + block.shape[0] <= size:
        tl.store(ptr + start + lanes, block)
    else:
        tl.store(ptr + start + lanes, block, mask=lanes < size - start)


@triton.jit
def total(block):
    """The sum of the lanes in fp64, once a program: a mean near 0 is as exact as its terms, which may be large."""
    return tl.sum(block.to(tl.float64), 0)


@triton.jit
def store_sums(ptr, sums):
    """Stores each of this program's sums in a row of `[len(sums), programs]`, in fp64."""
    ptr += tl.program_id(0)
    for row in tl.static_range(len(sums)):
        tl.store(ptr + row * tl.num_programs(0), sums[row].to(tl.float64))
