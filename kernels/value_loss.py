"""The clipped value loss: loss, statistics and the gradient of each value in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._aggregate import BLOCK, WARPS, Aggregation, programs, token_weights
from fgrl.kernels._blocks import load_block, store_block, store_sums, total
from fgrl.kernels._launch import FUSION, Case, flags, flat, on_device
from fgrl.types import compute_dtype

_STATISTICS = 6


@triton.jit(do_not_specialize=["size", "blocks", "length"])
def _value_loss_fwd_kernel(
    values_grad_ptr,
    partial_ptr,  # [6, programs] fp64
    values_ptr,
    old_values_ptr,  # None where values are not clipped
    returns_ptr,
    mask_ptr,
    weights,
    size,
    blocks,
    length,
    clip: tl.float64,
    GRAD_VALUES: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of every `programs`-th block of tokens, and the sums of their terms.

    near = clip(V, V_old - clip, V_old + clip)
    loss = v * max((V - R)^2, (near - R)^2) / 2,  v by the token's sequence
    d loss / d V = v * (V - R), or 0 where the second is larger: near is then one of the bounds
    """
    IS_CLIPPED: tl.constexpr = old_values_ptr is not None
    tokens = (values_ptr, old_values_ptr, returns_ptr)
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
        valid, block = load_block(tokens, mask_ptr, start, size, DTYPE, BLOCK)
        value, old, target = block
        weight = token_weights(weights, start, size, length, DTYPE, BLOCK)
        error = value - target
        square = error * error
        loss = square
        grad = error
        if IS_CLIPPED:
            near = tl.where(value > old + width, old + width, tl.where(value < old - width, old - width, value))
            near_square = (near - target) * (near - target)
            is_clipped = near_square > square
            loss = tl.where(is_clipped, near_square, square)
            grad = tl.where(is_clipped, 0.0, error)
            clip_count += is_clipped.to(tl.int32)
        if GRAD_VALUES:
            store_block(values_grad_ptr, start, size, weight * grad)
        losses += weight * loss
        values += value
        targets += target
        squares += square
        count += valid.to(tl.int32)
        start += programs * BLOCK
    store_sums(
        partial_ptr,
        (
            total(losses) * 0.5,
            tl.sum(clip_count, 0),
            total(values),
            total(targets),
            total(squares),
            tl.sum(count, 0),
        ),
    )


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
    *,
    block: int = BLOCK,
    max_programs: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, statistics, and gradient up to a scale; see `fgrl.ops.value_loss`.

    Reads every input once and writes the gradient once, 17 bytes a token in fp32; the mask is read twice for
    seq-mean-token-mean.
    """
    dtype = compute_dtype(values, old_values, returns)
    values_grad = torch.empty(values.shape if grad_values else 0, dtype=dtype, device=values.device)
    is_clipped = old_values is not None and math.isfinite(clip)
    size, mask = values.numel(), flags(mask)
    columns = programs(size, block, values.device, max_programs)
    partial = torch.empty(_STATISTICS, columns, dtype=torch.float64, device=values.device)
    with on_device(values):
        aggregator = Aggregation(aggregation, values, mask, normalizer, cu_seqlens, denominator, block)
        _value_loss_fwd_kernel[(columns,)](
            values_grad,
            partial,
            flat(values),
            flat(old_values) if is_clipped else None,
            flat(returns),
            mask,
            aggregator.weights,
            size,
            triton.cdiv(size, block),
            values.shape[-1],
            clip=clip,
            GRAD_VALUES=grad_values,
            DTYPE=tl.float64 if dtype == torch.float64 else tl.float32,
            BLOCK=block,
            num_warps=WARPS,
            **FUSION,
        )
        loss, stats, scale = aggregator.finish(partial, dtype, (1.0,), has_max=False)
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
