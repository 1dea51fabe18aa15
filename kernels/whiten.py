"""Whitening: the moments of a tensor of advantages, and the tensor shifted and scaled by given moments."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._blocks import load_block, store_block, store_sums
from fgrl.kernels._launch import FUSION, Case, flags, flat, on_device, programs_for
from fgrl.types import compute_dtype

_BLOCK = 1024
_WARPS = 4
_PROGRAMS_PER_MULTIPROCESSOR = 8


@triton.jit(do_not_specialize=["size", "blocks"])
def _moments_fwd_kernel(
    partial_ptr,  # [3, programs] fp64
    advantages_ptr,
    mask_ptr,
    size,
    blocks,
    BLOCK: tl.constexpr,
):
    """(count, sum, sum of squares) of the valid tokens of every `programs`-th block."""
    count = tl.zeros([BLOCK], tl.int32)
    total = tl.zeros([BLOCK], tl.float64)
    squares = tl.zeros([BLOCK], tl.float64)
    programs = tl.num_programs(0)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    for _ in range(tl.program_id(0), blocks, programs):
        valid, block = load_block((advantages_ptr,), mask_ptr, start, size, tl.float64, BLOCK)
        advantages = block[0]
        count += valid.to(tl.int32)
        total += advantages
        squares += advantages * advantages
        start += programs * BLOCK
    store_sums(partial_ptr, (tl.sum(count, 0), tl.sum(total, 0), tl.sum(squares, 0)))


@triton.jit(do_not_specialize=["size", "blocks"])
def _whiten_tokens_fwd_kernel(
    whitened_ptr,
    advantages_ptr,
    mask_ptr,
    moments_ptr,  # [3] fp64
    size,
    blocks,
    VARIANCE_FLOOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(A_t - mean) / sqrt(var + floor),   var with Bessel's correction, 0 for fewer than two tokens

    fp64 is slow on many GPUs, so only the mean and the scale are computed in it, once a program. A token meets the mean
    as two numbers of its own dtype: A_t - high is exact where A_t is near the mean, and low is what high leaves out.
    """
    DTYPE: tl.constexpr = whitened_ptr.dtype.element_ty
    count = tl.load(moments_ptr)
    total = tl.load(moments_ptr + 1)
    mean = total / tl.maximum(count, 1.0)
    variance = (tl.load(moments_ptr + 2) - total * mean) / tl.maximum(count - 1.0, 1.0)
    scale = 1.0 / tl.sqrt(tl.where(variance < 0, 0.0, variance) + VARIANCE_FLOOR)  # a NaN stays one
    scale = scale.to(DTYPE)
    high = mean.to(DTYPE)
    low = (mean - high.to(tl.float64)).to(DTYPE)
    programs = tl.num_programs(0)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    for _ in range(tl.program_id(0), blocks, programs):
        valid, block = load_block((advantages_ptr,), mask_ptr, start, size, DTYPE, BLOCK)
        whitened = tl.where(valid, ((block[0] - high) - low) * scale, 0.0)
        store_block(whitened_ptr, start, size, whitened)
        start += programs * BLOCK


def moments(advantages: Tensor, mask: Tensor | None, *, block: int = _BLOCK, max_programs: int | None = None) -> Tensor:
    """float64 `[3]`: count, sum and sum of squares of the valid advantages.

    Reads advantages and mask once. Two stages in a fixed order: a partial sum a program, then their sum.
    """
    advantages, mask = flat(advantages), flags(mask)
    blocks = triton.cdiv(advantages.numel(), block)
    programs = programs_for(blocks, advantages.device, _PROGRAMS_PER_MULTIPROCESSOR, max_programs)
    partial = torch.empty(3, programs, dtype=torch.float64, device=advantages.device)
    with on_device(advantages):
        _moments_fwd_kernel[(programs,)](
            partial,
            advantages,
            mask,
            advantages.numel(),
            blocks,
            BLOCK=block,
            num_warps=_WARPS,
            **FUSION,
        )
    return partial.sum(1)


def whiten_tokens(
    advantages: Tensor,
    mask: Tensor | None,
    moments: Tensor,
    *,
    block: int = _BLOCK,
    max_programs: int | None = None,
) -> Tensor:
    """`advantages` with the mean and variance that `moments` give them; 0 where the mask is false.

    Reads advantages and mask once and writes the result once.
    """
    whitened = torch.empty(advantages.shape, dtype=compute_dtype(advantages), device=advantages.device)
    advantages, mask = flat(advantages), flags(mask)
    blocks = triton.cdiv(advantages.numel(), block)
    if blocks:
        programs = programs_for(blocks, advantages.device, _PROGRAMS_PER_MULTIPROCESSOR, max_programs)
        with on_device(advantages):
            _whiten_tokens_fwd_kernel[(programs,)](
                whitened,
                advantages,
                mask,
                moments.contiguous(),
                advantages.numel(),
                blocks,
                VARIANCE_FLOOR=1e-8,
                BLOCK=block,
                num_warps=_WARPS,
                **FUSION,
            )
    return whitened


def aot_cases() -> Iterator[Case]:
    """Whole batches in fp32 and in fp64, with and without a mask."""
    for dtype, has_mask in ((torch.float32, True), (torch.float32, False), (torch.float64, True)):
        advantages = torch.empty(4096, 1000, dtype=dtype, device="meta")
        mask = torch.empty(4096, 1000, dtype=torch.bool, device="meta") if has_mask else None
        label = f"{str(dtype).removeprefix('torch.')}{' mask' if has_mask else ''}"
        yield Case(f"moments {label}", moments, (advantages, mask))
        yield Case(
            f"whiten {label}", whiten_tokens, (advantages, mask, torch.empty(3, dtype=torch.float64, device="meta"))
        )
