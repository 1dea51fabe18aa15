"""The clipped value loss: loss, statistics and the gradient of each value in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._aggregate import (
    BLOCK,
    WARPS,
    Aggregation,
    load_tokens,
    load_valid,
    programs,
    store_tokens,
    token_weights,
)
from fgrl.kernels._launch import Case, flags, flat, on_device
from fgrl.types import compute_dtype

_STATISTICS = 6


@triton.jit
def _load_block(
    values_ptr,
    old_values_ptr,
    returns_ptr,
    mask_ptr,
    start,
    size,
    IS_CLIPPED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):
    valid = load_valid(mask_ptr, start, size, HAS_MASK, BLOCK, FULL)
    return (
        valid,
        load_tokens(values_ptr, start, size, valid, True, DTYPE, FULL),
        load_tokens(old_values_ptr, start, size, valid, IS_CLIPPED, DTYPE, FULL),
        load_tokens(returns_ptr, start, size, valid, True, DTYPE, FULL),
    )


@triton.jit(do_not_specialize=["size", "blocks", "length"])
def _value_loss_fwd_kernel(
    values_grad_ptr,
    partial_ptr,  # [6, programs] fp64
    values_ptr,
    old_values_ptr,
    returns_ptr,
    mask_ptr,
    counts_ptr,
    first_ptr,
    cu_seqlens_ptr,
    size,
    blocks,
    length,
    clip: tl.float64,
    IS_CLIPPED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    GRAD_VALUES: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    IS_PACKED: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of every `programs`-th block of tokens, and the sums of their terms.

    near = clip(V, V_old - clip, V_old + clip)
    loss = v * max((V - R)^2, (near - R)^2) / 2,  v by the token's sequence
    d loss / d V = v * (V - R), or 0 where the second is greater: near is then one of the bounds
    """
    width = tl.full([], clip, DTYPE)
    losses = tl.zeros([BLOCK], DTYPE)
    clip_count = tl.zeros([BLOCK], tl.int32)
    values = tl.zeros([BLOCK], DTYPE)
    targets = tl.zeros([BLOCK], DTYPE)
    squares = tl.zeros([BLOCK], DTYPE)
    count = tl.zeros([BLOCK], tl.int32)
    programs = tl.num_programs(0)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    for _ in range(tl.program_id(0), blocks, programs):
        if start + BLOCK <= size:
            valid, value, old, target = _load_block(
                values_ptr,
                old_values_ptr,
                returns_ptr,
                mask_ptr,
                start,
                size,
                IS_CLIPPED,
                HAS_MASK,
                DTYPE,
                BLOCK,
                FULL=True,
            )
        else:
            valid, value, old, target = _load_block(
                values_ptr,
                old_values_ptr,
                returns_ptr,
                mask_ptr,
                start,
                size,
                IS_CLIPPED,
                HAS_MASK,
                DTYPE,
                BLOCK,
                FULL=False,
            )
        weight = token_weights(
            counts_ptr, first_ptr, cu_seqlens_ptr, start, size, length, HAS_WEIGHTS, IS_PACKED, DTYPE, BLOCK
        )
        error = value - target
        square = error * error
        loss = square
        slope = error
        if IS_CLIPPED:
            near = tl.where(value > old + width, old + width, tl.where(value < old - width, old - width, value))
            near_square = (near - target) * (near - target)
            is_clipped = near_square > square
            loss = tl.where(is_clipped, near_square, square)
            slope = tl.where(is_clipped, 0.0, error)
            clip_count += is_clipped.to(tl.int32)
        if GRAD_VALUES:
            store_tokens(values_grad_ptr, start, size, weight * slope)
        losses += weight * loss
        values += value
        targets += target
        squares += square
        count += valid.to(tl.int32)
        start += programs * BLOCK
    partial_ptr += tl.program_id(0)
    tl.store(partial_ptr, tl.sum(losses, 0).to(tl.float64) * 0.5)
    tl.store(partial_ptr + programs, tl.sum(clip_count, 0).to(tl.float64))
    tl.store(partial_ptr + 2 * programs, tl.sum(values, 0).to(tl.float64))
    tl.store(partial_ptr + 3 * programs, tl.sum(targets, 0).to(tl.float64))
    tl.store(partial_ptr + 4 * programs, tl.sum(squares, 0).to(tl.float64))
    tl.store(partial_ptr + 5 * programs, tl.sum(count, 0).to(tl.float64))


def value_loss(
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor,
    mask: Tensor | None,
    normalizer: Tensor | None,
    cu_seqlens: Tensor | None,
    denominator: float,
    aggregation: int,
    clip: float,
    grad_values: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, statistics, and gradient up to a scale; see `fgrl.ops.value_loss`.

    Reads every input once and writes the gradient once, 17 bytes a token in fp32; the mask is read twice for
    seq-mean-token-mean.
    """
    dtype = compute_dtype(values, old_values, returns)
    values_grad = torch.empty(values.shape if grad_values else 0, dtype=dtype, device=values.device)
    is_clipped = old_values is not None and math.isfinite(clip)
    size, mask = values.numel(), flags(mask)
    columns = programs(size, values.device)
    partial = torch.empty(_STATISTICS, columns, dtype=torch.float64, device=values.device)
    with on_device(values):
        aggregator = Aggregation(aggregation, values, mask, normalizer, cu_seqlens, denominator)
        _value_loss_fwd_kernel[(columns,)](
            values_grad,
            partial,
            flat(values),
            flat(old_values) if is_clipped else None,
            flat(returns),
            mask,
            size=size,
            blocks=triton.cdiv(size, BLOCK),
            clip=clip,
            IS_CLIPPED=is_clipped,
            HAS_MASK=mask is not None,
            GRAD_VALUES=grad_values,
            DTYPE=tl.float64 if dtype == torch.float64 else tl.float32,
            BLOCK=BLOCK,
            num_warps=WARPS,
            **aggregator.weights(),
        )
        loss, stats, scale = aggregator.finish(partial, dtype, (1.0,), has_greatest=False)
    return loss, stats, scale, values_grad


def aot_cases() -> Iterator[Case]:
    """Every dtype, then every aggregation and layout in fp32, without the clip, the mask or the gradient too."""

    def case(
        label: str,
        dtype: torch.dtype = torch.float32,
        *,
        aggregation: int = 0,
        packed: bool = False,
        clip: float = 0.2,
        has_mask: bool = True,
        gradient: bool = True,
    ) -> Case:
        shape = (4096 * 1000,) if packed else (4096, 1000)
        tokens = torch.empty(shape, dtype=dtype, device="meta")
        mask = torch.empty(shape, dtype=torch.bool, device="meta") if has_mask else None
        cu_seqlens = torch.empty(4097, dtype=torch.int64, device="meta") if packed else None
        arguments = (tokens, tokens, tokens, mask, None, cu_seqlens, 0.0, aggregation, clip, gradient)
        return Case(label, value_loss, arguments)

    yield case("float32")
    yield case("bfloat16", torch.bfloat16)
    yield case("float64", torch.float64)
    yield case("token-sum without clip", aggregation=1, clip=math.inf, has_mask=False)
    yield case("seq-mean-token-sum packed", aggregation=2, packed=True)
    yield case("seq-mean-token-mean", aggregation=3)
    yield case("seq-mean-token-mean packed", aggregation=3, packed=True)
    yield case("no gradient", gradient=False)
