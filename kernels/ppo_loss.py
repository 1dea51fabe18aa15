"""The clipped PPO loss: loss, statistics and the gradient of each token in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._aggregate import BLOCK, WARPS, Aggregation, greater, programs, token_weights
from fgrl.kernels._blocks import load_block, store_block, store_sums
from fgrl.kernels._kl import kl_value
from fgrl.kernels._launch import FUSION, Case, flags, flat, on_device
from fgrl.types import compute_dtype

_STATISTICS = 9


class Tokens(NamedTuple):
    """An entry a token; None where there are none."""

    logprobs_ptr: Tensor
    old_logprobs_ptr: Tensor | None
    advantages_ptr: Tensor
    ref_logprobs_ptr: Tensor | None
    entropy_ptr: Tensor | None
    rollout_logprobs_ptr: Tensor | None


@triton.jit
def _exp(x):
    """e^x for |x| <= 20. In fp32 `tl.exp` scales x in one rounding, an error that grows with it: here it does not."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        power = tl.floor(x * 1.4426950408889634 + 0.5)
        rest = x - power * 0.693359375 - power * -2.12194440e-4  # of ln 2; the first product is exact
        return tl.exp2(power) * tl.exp(rest)


@triton.jit
def _kl_slope(difference, value, KIND: tl.constexpr):
    """The derivative of `kl_value` by logp. |d| has none at 0, where it is taken as 0."""
    if KIND == 0:
        return tl.full(difference.shape, 1.0, difference.dtype)
    elif KIND == 1:
        return difference
    elif KIND == 2:
        return tl.where(tl.abs(difference) < 1, difference - value, 1.0 - tl.exp(-difference))
    else:
        return tl.where(difference < 0, -1.0, tl.where(difference > 0, 1.0, difference))


@triton.jit
def _clamp(x, low, high):
    """NaN stays."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit(do_not_specialize=["size", "blocks", "length"])
def _ppo_loss_fwd_kernel(
    logprobs_grad_ptr,
    entropy_grad_ptr,
    partial_ptr,  # [9, programs] fp64
    tokens,
    mask_ptr,
    weights,
    size,
    blocks,
    length,
    ratio_low: tl.float64,
    ratio_high: tl.float64,
    dual_clip: tl.float64,
    kl_coef: tl.float64,
    entropy_coef: tl.float64,
    importance_cap: tl.float64,
    KL_KIND: tl.constexpr,
    KL_IN_LOSS: tl.constexpr,
    HAS_DUAL_CLIP: tl.constexpr,
    GRAD_LOGPROBS: tl.constexpr,
    GRAD_ENTROPY: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of every `programs`-th block of tokens, and the sums of their terms.

    x     = clamp(logp - old, -20, 20),  ratio = e^x
    l     = max(-A * ratio, -A * clip(ratio)),  at most -A * dual_clip where A < 0
    loss  = v * (w * l + kl_coef * KL(logp, ref) - entropy_coef * entropy),  v by the token's sequence
    d loss / d logp = v * (w * -A * ratio + kl_coef * KL'),  the first term only where nothing was clipped
    """
    HAS_OLD: tl.constexpr = tokens.old_logprobs_ptr is not None
    HAS_REF: tl.constexpr = tokens.ref_logprobs_ptr is not None
    HAS_ROLLOUT: tl.constexpr = tokens.rollout_logprobs_ptr is not None
    low = tl.full([], ratio_low, DTYPE)
    high = tl.full([], ratio_high, DTYPE)
    bound = tl.full([], dual_clip, DTYPE)
    kl_weight = tl.full([], kl_coef, DTYPE)
    entropy_slope = -tl.full([], entropy_coef, DTYPE)
    cap = tl.full([], importance_cap, DTYPE)
    policy = tl.zeros([BLOCK], DTYPE)
    kl = tl.zeros([BLOCK], DTYPE)
    bonus = tl.zeros([BLOCK], DTYPE)
    clip_count = tl.zeros([BLOCK], tl.int32)
    dual_clip_count = tl.zeros([BLOCK], tl.int32)
    log_ratios = tl.zeros([BLOCK], DTYPE)
    ratios = tl.zeros([BLOCK], DTYPE)
    greatest = tl.zeros([BLOCK], DTYPE)
    count = tl.zeros([BLOCK], tl.int32)
    programs = tl.num_programs(0)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    for _ in range(tl.program_id(0), blocks, programs):
        valid, block = load_block(tokens, mask_ptr, start, size, DTYPE, BLOCK)
        logp, old, advantage, ref, entropy, rollout = block
        weight = token_weights(weights, start, size, length, DTYPE, BLOCK)
        if not HAS_OLD:
            old = logp
        difference = logp - old
        log_ratio = _clamp(difference, -20.0, 20.0)
        ratio = _exp(log_ratio)

        unclipped = -advantage * ratio
        clipped = -advantage * _clamp(ratio, low, high)
        is_clipped = clipped > unclipped
        loss = tl.where(is_clipped, clipped, unclipped)
        has_slope = (difference >= -20.0) & (difference <= 20.0) & ~is_clipped
        if HAS_DUAL_CLIP:
            is_dual_clipped = (advantage < 0) & (-advantage * bound < loss)
            loss = tl.where(is_dual_clipped, -advantage * bound, loss)
            has_slope &= ~is_dual_clipped
            dual_clip_count += is_dual_clipped.to(tl.int32)
        slope = tl.where(has_slope, unclipped, 0.0)
        if HAS_ROLLOUT:
            importance = _exp(_clamp(old - rollout, -20.0, 20.0))
            importance = tl.where(importance > cap, cap, importance)
            loss *= importance
            slope *= importance
        if HAS_REF:
            gap = logp - ref
            divergence = kl_value(gap, KL_KIND)
            kl += weight * divergence
            if KL_IN_LOSS:
                if KL_KIND < 4:
                    slope += kl_weight * _kl_slope(gap, divergence, KL_KIND)
                else:
                    slope += kl_weight * (ratio * gap)
        if GRAD_LOGPROBS:
            store_block(logprobs_grad_ptr, start, size, tl.where(valid, weight * slope, 0.0))
        if GRAD_ENTROPY:
            store_block(entropy_grad_ptr, start, size, tl.where(valid, entropy_slope * weight, 0.0))

        policy += weight * loss
        bonus += weight * entropy
        clip_count += is_clipped.to(tl.int32)
        log_ratios += log_ratio
        ratio = tl.where(valid, ratio, 0.0)
        ratios += ratio
        greatest = greater(ratio, greatest)
        count += valid.to(tl.int32)
        start += programs * BLOCK
    store_sums(
        partial_ptr,
        (
            tl.sum(policy, 0),
            tl.sum(kl, 0),
            tl.sum(bonus, 0),
            tl.sum(clip_count, 0),
            tl.sum(dual_clip_count, 0),
            -tl.sum(log_ratios, 0),
            tl.sum(ratios, 0),
            tl.reduce(greatest, 0, greater),
            tl.sum(count, 0),
        ),
    )


def ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor | None,
    ref_logprobs: Tensor | None,
    entropy: Tensor | None,
    rollout_logprobs: Tensor | None,
    normalizer: Tensor | None,
    cu_seqlens: Tensor | None,
    denominator: float,
    aggregation: int,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    kl_coef: float,
    kl_estimator: int,
    entropy_coef: float,
    importance_cap: float,
    grad_logprobs: bool,
    grad_entropy: bool,
    *,
    block: int = BLOCK,
    max_programs: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, statistics, and gradients up to a scale; see `fgrl.ops.ppo_loss`.

    Reads every input once and writes every gradient once, 17 bytes a token in fp32 without options; the mask is read
    twice for seq-mean-token-mean.
    """
    dtype = compute_dtype(logprobs, old_logprobs, advantages, ref_logprobs, entropy, rollout_logprobs)
    logprobs_grad, entropy_grad = (
        torch.empty(logprobs.shape if wanted else 0, dtype=dtype, device=logprobs.device)
        for wanted in (grad_logprobs, grad_entropy)
    )
    tokens = Tokens(*map(flat, (logprobs, old_logprobs, advantages, ref_logprobs, entropy, rollout_logprobs)))
    size, mask = logprobs.numel(), flags(mask)
    columns = programs(size, block, logprobs.device, max_programs)
    partial = torch.empty(_STATISTICS, columns, dtype=torch.float64, device=logprobs.device)
    with on_device(logprobs):
        aggregator = Aggregation(aggregation, logprobs, mask, normalizer, cu_seqlens, denominator, block)
        _ppo_loss_fwd_kernel[(columns,)](
            logprobs_grad,
            entropy_grad,
            partial,
            tokens,
            mask,
            aggregator.weights,
            size,
            triton.cdiv(size, block),
            logprobs.shape[-1],
            ratio_low=1 - clip_low,
            ratio_high=1 + clip_high,
            dual_clip=dual_clip,
            kl_coef=kl_coef,
            entropy_coef=entropy_coef,
            importance_cap=importance_cap,
            KL_KIND=kl_estimator,
            KL_IN_LOSS=kl_coef != 0,
            HAS_DUAL_CLIP=math.isfinite(dual_clip),
            GRAD_LOGPROBS=grad_logprobs,
            GRAD_ENTROPY=grad_entropy,
            DTYPE=tl.float64 if dtype == torch.float64 else tl.float32,
            BLOCK=block,
            num_warps=WARPS,
            **FUSION,
        )
        loss, stats, scale = aggregator.finish(partial, dtype, (1.0, kl_coef, -entropy_coef), has_greatest=True)
    return loss, stats, scale, logprobs_grad, entropy_grad


def aot_cases() -> Iterator[Case]:
    """Every dtype with the fewest and with all inputs, then every aggregation, layout and KL estimator in fp32."""

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def case(
        label: str,
        dtype: torch.dtype = torch.float32,
        *,
        options: bool = False,
        aggregation: int = 0,
        estimator: int = 2,
        packed: bool = False,
        normalizer: Tensor | None = None,
        gradient: bool = True,
    ) -> Case:
        shape = (4096 * 1000,) if packed else (4096, 1000)
        tokens = meta(*shape, dtype=dtype)
        mask = meta(*shape, dtype=torch.bool)
        option = tokens if options else None
        tensors = (tokens, tokens, tokens, mask, option, option, option, normalizer)
        cu_seqlens = meta(4097, dtype=torch.int32) if packed else None
        coefficients = (0.2, 0.2, 3.0, 0.1 * options, estimator, 0.1 * options, 2.0)
        arguments = (*tensors, cu_seqlens, 0.0, aggregation, *coefficients, gradient, gradient and options)
        return Case(label, ppo_loss, arguments)

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        name = str(dtype).removeprefix("torch.")
        yield case(name, dtype)
        yield case(f"{name} all inputs", dtype, options=True)
    yield case("no gradient", gradient=False)
    yield case("token-sum normalizer", aggregation=1, normalizer=meta())
    yield case("seq-mean-token-sum", aggregation=2)
    yield case("seq-mean-token-mean", aggregation=3, options=True)
    yield case("seq-mean-token-mean packed", aggregation=3, packed=True)
    for estimator in (0, 1, 3, 6):
        yield case(f"estimator {estimator}", options=True, estimator=estimator)
