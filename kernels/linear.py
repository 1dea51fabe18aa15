"""The softmax steps of the `linear_*` ops: statistics of rows of logits, and the gradient by them.

What they compute, and how it fits together, is in `fgrl/ops/_linear.py`. Rows of logits have a stride, and the columns
up to it are memory, with anything in it: loads have no other bound, because one that is not known to be a multiple of
anything would split them into single elements. Columns past the vocabulary are dropped after the load.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._launch import FUSION, Case, flat, multiprocessors, on_device

_BLOCK = 1024
_WARPS = 4
_PROGRAMS_PER_MULTIPROCESSOR = 4
_LOWEST = tl.constexpr(-3.0e38)  # below any logit, and finite: differences to it are too


@triton.jit
def _tanh(x):
    """tanh, exact to rounding near 0 too, where 1 - 2 / (e^2x + 1) cancels."""
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    if x.dtype == tl.float64:
        return tl.where(x < 0, -far, far)
    square = x * x
    near = 62.0 / 2835.0 * square - 17.0 / 315.0
    near = (near * square + 2.0 / 15.0) * square - 1.0 / 3.0
    return tl.where(size < 0.25, x + x * square * near, tl.where(x < 0, -far, far))


@triton.jit
def _scale(logits, inverse_temperature, softcap, HAS_SOFTCAP: tl.constexpr):
    """z, and the derivative of the soft-cap. The two numbers come in fp64 and count in the dtype of the logits."""
    inverse_temperature = tl.full([], inverse_temperature, logits.dtype)
    softcap = tl.full([], softcap, logits.dtype)
    if HAS_SOFTCAP:
        capped = _tanh(logits / softcap)
        z, softcap_grad = capped * (softcap * inverse_temperature), 1.0 - capped * capped
    else:
        z, softcap_grad = logits * inverse_temperature, tl.zeros_like(logits) + 1.0
    return z, softcap_grad


@triton.jit(do_not_specialize=["vocabulary", "blocks_a_part", "parts"])
def _logit_statistics_fwd_kernel(
    statistics_ptr,  # [4, parts, rows]
    logits_ptr,
    bias_ptr,
    targets_ptr,
    inverse_temperature: tl.float64,
    softcap: tl.float64,
    vocabulary,
    blocks_a_part,
    parts,
    logits_stride,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """m = max z,   s = sum e^(z - m),   w = sum e^(z - m) (z - m) of one part of one row, and z_target if it is there

    Each lane has the three of its own columns; they are combined once, after the last block.
    """
    HAS_BIAS: tl.constexpr = bias_ptr is not None
    row, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    size = tl.num_programs(0)
    position = part * (size // parts) + row
    logits_ptr += row.to(tl.int64) * logits_stride
    dtype: tl.constexpr = logits_ptr.dtype.element_ty

    running_max = tl.full([BLOCK], _LOWEST, dtype)
    total = tl.zeros([BLOCK], dtype)
    weighted = tl.zeros([BLOCK], dtype)
    first = part * blocks_a_part
    for block in range(first, first + blocks_a_part):
        columns = block * BLOCK + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + columns, mask=columns < logits_stride, other=0.0)  # [BLOCK]
        if HAS_BIAS:
            logits += tl.load(bias_ptr + columns, mask=columns < vocabulary, other=0.0).to(dtype)
        z, _ = _scale(logits, inverse_temperature, softcap, HAS_SOFTCAP)
        z = tl.where(columns < vocabulary, z, float("-inf"))
        last_max, running_max = running_max, tl.maximum(running_max, z)
        step, x = last_max - running_max, z - running_max
        rescale, e = tl.exp(step), tl.exp(x)
        weighted = (weighted + total * step) * rescale + tl.where(e > 0, e * x, 0.0)  # not 0 * -inf
        total = total * rescale + e
    row_max = tl.max(running_max, 0)
    step = running_max - row_max
    rescale = tl.exp(step)
    tl.store(statistics_ptr + position, row_max)
    tl.store(statistics_ptr + size + position, tl.sum(total * rescale, 0))
    tl.store(statistics_ptr + 2 * size + position, tl.sum((weighted + total * step) * rescale, 0))

    target = tl.load(targets_ptr + row)
    start = first * BLOCK
    is_here = (target >= start) & (target < start + blocks_a_part * BLOCK) & (target < vocabulary)
    logit = tl.load(logits_ptr + target, mask=is_here, other=0.0)
    if HAS_BIAS:
        logit += tl.load(bias_ptr + target, mask=is_here, other=0.0).to(dtype)
    z, _ = _scale(logit, inverse_temperature, softcap, HAS_SOFTCAP)
    tl.store(statistics_ptr + 3 * size + position, tl.where(is_here, z, 0.0))


@triton.jit(do_not_specialize=["vocabulary", "rows"])
def _logit_gradient_bwd_kernel(
    out_ptr,
    logits_ptr,
    bias_ptr,
    targets_ptr,
    grads_ptr,  # [4, rows]: m, a, b and c
    inverse_temperature: tl.float64,
    softcap: tl.float64,
    vocabulary,
    rows,
    logits_stride,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """e^x (a + b x) + [it is the target] c   with x = z - m, times the derivative of the soft-cap"""
    HAS_BIAS: tl.constexpr = bias_ptr is not None
    blocks = tl.cdiv(vocabulary, BLOCK)
    row = tl.program_id(0) // blocks
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    offsets = row.to(tl.int64) * logits_stride + columns

    logits = tl.load(logits_ptr + offsets, mask=columns < logits_stride, other=0.0)  # [BLOCK]
    if HAS_BIAS:
        logits += tl.load(bias_ptr + columns, mask=columns < vocabulary, other=0.0).to(logits.dtype)
    z, softcap_grad = _scale(logits, inverse_temperature, softcap, HAS_SOFTCAP)
    grads_ptr += row
    x = z - tl.load(grads_ptr)
    constant = tl.load(grads_ptr + rows)
    linear = tl.load(grads_ptr + 2 * rows.to(tl.int64))
    e = tl.exp(x)
    grad = tl.where(e == 0, 0.0, e * (constant + linear * x))
    grad += tl.where(columns == tl.load(targets_ptr + row), tl.load(grads_ptr + 3 * rows.to(tl.int64)), 0.0)
    tl.store(out_ptr + offsets, grad * softcap_grad, mask=columns < logits_stride)


def logit_statistics(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    softcap: float | None,
    *,
    block: int = _BLOCK,
    min_programs: int | None = None,
) -> Tensor:
    """`[4, parts, R]` of logits `[R, V]`: m, s, w and z_target of each part of each row.

    Reads the logits once. A row has several parts where rows alone make fewer than `min_programs` programs, by default
    what fills the GPU.
    """
    rows, vocabulary = logits.shape
    blocks = triton.cdiv(vocabulary, block)
    if min_programs is None:
        min_programs = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(logits.device)
    wanted_parts = triton.cdiv(min_programs, rows)
    blocks_a_part = triton.cdiv(blocks, min(blocks, wanted_parts))
    parts = triton.cdiv(blocks, blocks_a_part)
    statistics = logits.new_empty(4, parts, rows)
    with on_device(logits):
        _logit_statistics_fwd_kernel[(rows * parts,)](
            statistics,
            logits,
            flat(bias),
            flat(targets),
            1 / temperature,
            softcap or 1.0,
            vocabulary,
            blocks_a_part,
            parts,
            logits.stride(0),
            HAS_SOFTCAP=softcap is not None,
            BLOCK=block,
            num_warps=_WARPS,
            **FUSION,
        )
    return statistics


def logit_gradient(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    grads: Tensor,
    temperature: float,
    softcap: float | None,
    out: Tensor,
    *,
    block: int = _BLOCK,
) -> None:
    """The gradient by logits `[R, V]` into `out`, which may be the logits themselves.

    Reads the logits once and writes as many gradients.
    """
    rows, vocabulary = logits.shape
    with on_device(logits):
        _logit_gradient_bwd_kernel[(rows * triton.cdiv(vocabulary, block),)](
            out,
            logits,
            flat(bias),
            flat(targets),
            grads,
            1 / temperature,
            softcap or 1.0,
            vocabulary,
            rows,
            logits.stride(0),
            HAS_SOFTCAP=softcap is not None,
            BLOCK=block,
            num_warps=_WARPS,
            **FUSION,
        )


def aot_cases() -> Iterator[Case]:
    """A chunk of a large vocabulary in fp32, with gradients in bf16, and all that can be added to it; fp64."""
    for dtype, bias, softcap in (
        (torch.float32, False, None),
        (torch.float32, True, 30.0),
        (torch.float64, True, 30.0),
    ):
        vocabulary = 151936
        logits = torch.empty(1024, vocabulary, dtype=dtype, device="meta")
        targets = torch.empty(1024, dtype=torch.int64, device="meta")
        biases = torch.empty(vocabulary, dtype=torch.bfloat16, device="meta") if bias else None
        grads = torch.empty(4, 1024, dtype=dtype, device="meta")
        out = logits.to(torch.bfloat16) if dtype == torch.float32 else logits
        label = f"{str(dtype).removeprefix('torch.')}{' bias softcap' if bias else ''}"
        yield Case(f"statistics {label}", logit_statistics, (logits, biases, targets, 0.7, softcap))
        yield Case(f"gradient {label}", logit_gradient, (logits, biases, targets, grads, 0.7, softcap, out))
    few = torch.empty(4, 50272, device="meta")[:, :50257]
    targets = torch.empty(4, dtype=torch.int64, device="meta")
    yield Case("statistics, few rows", logit_statistics, (few, None, targets, 1.0, None))
