"""Checks of values that stop the kernel, and with it the process, instead of making the host wait for an answer.

One kernel each: it reads the values once and asserts on the device. PyTorch reports the failure at the next
synchronisation; see `fgrl.checks` for what it does to the process.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._launch import FUSION, Case, flags, flat, on_device

_BLOCK = 1024


@triton.jit(debug=True, do_not_specialize=["low", "high", "size"])
def _check_range_kernel(
    values_ptr,
    mask_ptr,
    bound_ptr,
    low,
    high,
    size,
    BINARY: tl.constexpr,
    MESSAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """low <= value <= high, or value < bound where there is one; 0 or 1 if BINARY; anything where the mask is 0"""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    if mask_ptr is not None:
        inside &= tl.load(mask_ptr + offsets, mask=inside, other=0) != 0
    values = tl.load(values_ptr + offsets, mask=inside, other=0)  # [BLOCK]
    if BINARY:
        is_good = (values == 0) | (values == 1)
    elif bound_ptr is not None:
        is_good = (values >= low) & (values < tl.load(bound_ptr))
    else:
        is_good = (values >= low) & (values <= high)
    tl.device_assert(is_good | (inside == 0), MESSAGE)


@triton.jit(debug=True, do_not_specialize=["size", "length"])
def _check_offsets_kernel(offsets_ptr, size, length, MESSAGE: tl.constexpr, BLOCK: tl.constexpr):
    """offsets[0] == 0, offsets[i] <= offsets[i + 1], offsets[size - 1] == length"""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    offset = tl.load(offsets_ptr + index, mask=inside, other=0)  # [BLOCK]
    before = tl.load(offsets_ptr + index - 1, mask=inside & (index > 0), other=0)
    is_good = (offset >= before) & ((index > 0) | (offset == 0)) & ((index < size - 1) | (offset == length))
    tl.device_assert(is_good | (inside == 0), MESSAGE)


def check_range(
    values: Tensor,
    mask: Tensor | None,
    bound: Tensor | None,
    low: float,
    high: float,
    binary: bool,
    message: str,
) -> None:
    """Reads the values once, and the mask."""
    values, size = flat(values), values.numel()
    if values.dtype == torch.bool or size == 0:
        return
    with on_device(values):
        _check_range_kernel[(triton.cdiv(size, _BLOCK),)](
            values, flags(mask), bound, low, high, size, BINARY=binary, MESSAGE=message, BLOCK=_BLOCK, **FUSION
        )


def check_offsets(offsets: Tensor, length: int, message: str) -> None:
    """Reads the offsets twice, from the cache the second time."""
    offsets, size = flat(offsets), offsets.numel()
    with on_device(offsets):
        _check_offsets_kernel[(triton.cdiv(size, _BLOCK),)](
            offsets, size, length, MESSAGE=message, BLOCK=_BLOCK, **FUSION
        )


def aot_cases() -> Iterator[Case]:
    """A mask of 0 and 1, targets under a mask with and without a bound on the device, lambdas, offsets."""
    mask = torch.empty(256, 2048, dtype=torch.int64, device="meta")
    bound = torch.empty((), dtype=torch.int64, device="meta")
    yield Case("mask", check_range, (mask, None, None, 0, 1, True, "bad"))
    yield Case("targets", check_range, (mask, mask, None, 0, 151935, False, "bad"))
    yield Case("targets of a shard", check_range, (mask, mask, bound, 0, 0, False, "bad"))
    yield Case("lambdas", check_range, (mask[0].float(), None, None, 0.0, 1.0, False, "bad"))
    yield Case("offsets", check_offsets, (mask[0], 4096, "bad"))
