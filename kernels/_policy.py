"""The policy losses of `fgrl.reference._policy` inside a kernel, by the position of their name in `PolicyLoss`.

`terms` of a sequence, `[4, batch]`: its importance weight, its ratio, the gradient of each token that is not clipped
(for "gspo-token": 1, or 0 where the ratio is beyond the clamp), and the sum of its advantages.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._blocks import load_block
from fgrl.kernels._sequences import ALIGNMENT, start_of

CLIP = tl.constexpr(0)
GSPO = tl.constexpr(1)
GSPO_TOKEN = tl.constexpr(2)
GMPO = tl.constexpr(3)
CISPO = tl.constexpr(4)
SAPO = tl.constexpr(5)
REINFORCE = tl.constexpr(6)


class Sequences(NamedTuple):
    """What the tokens of a block need to find what they share with their sequence; or nothing."""

    terms_ptr: Tensor | None = None
    first_ptr: Tensor | None = None
    """int32 `[blocks]`: the first sequence of each block."""
    cu_seqlens_ptr: Tensor | None = None


def has_sequence_ratio(policy_loss: int) -> bool:
    """Whether the ratio is the sequence's."""
    return policy_loss in (GSPO.value, GSPO_TOKEN.value, GMPO.value)


@triton.jit
def exp(x):
    """e^x for |x| <= 20. In fp32 `tl.exp` scales x in one rounding, an error that grows with it: here it does not."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        power = tl.floor(x * 1.4426950408889634 + 0.5)
        rest = x - power * 0.693359375 - power * -2.12194440e-4  # of ln 2; the first product is exact
        return tl.exp2(power) * tl.exp(rest)


@triton.jit
def clamp(x, low, high):
    """NaN stays."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def bound_importance(weight, floor, cap, MASKS: tl.constexpr):
    """The bound beyond a bound, or 0 if MASKS."""
    if MASKS:
        return tl.where((weight < floor) | (weight > cap), 0.0, weight)
    else:
        return clamp(weight, floor, cap)


@triton.jit
def policy_terms(
    logp,
    difference,
    ratio,
    advantage,
    sequence_grad,
    sequence_advantage,
    low,
    high,
    dual_clip,
    tau_positive,
    tau_negative,
    LOSS: tl.constexpr,
    HAS_DUAL_CLIP: tl.constexpr,
):
    """The loss, its gradient by logp, and where the two clips are active; `advantage` carries the importance weight."""
    inside = (difference >= -20.0) & (difference <= 20.0)
    is_clipped = tl.full(logp.shape, False, tl.int1)
    is_dual_clipped = is_clipped
    if LOSS == REINFORCE:
        loss = -advantage * logp
        grad = -advantage
    elif LOSS == CISPO:
        is_clipped = (ratio < low) | (ratio > high)
        grad = -advantage * clamp(ratio, low, high)
        loss = grad * logp
    elif LOSS == SAPO:
        # With e = e^-|z|: sigmoid(z) = 1 / (1 + e) or e / (1 + e), its derivative e / (1 + e)^2.
        tau = tl.where(advantage > 0, tau_positive, tau_negative)
        z = tau * (ratio - 1.0)
        e = tl.exp(-tl.abs(z))
        scale = -4.0 * advantage / (1.0 + e)
        loss = tl.where(z < 0, scale * e, scale) / tau
        grad = tl.where(inside, scale * e / (1.0 + e) * ratio, 0.0)
    elif LOSS == GMPO:
        log_ratio = clamp(difference, -20.0, 20.0)
        is_negative = sequence_advantage < 0
        is_clipped = tl.where(is_negative, log_ratio < low, log_ratio > high)
        bounded = ratio
        if HAS_DUAL_CLIP:
            is_dual_clipped = is_negative & (ratio > dual_clip)
            bounded = tl.where(is_dual_clipped, dual_clip, ratio)
        loss = -advantage * bounded
        grad = tl.where(inside & ~is_clipped, sequence_grad, 0.0)
    else:
        unclipped = -advantage * ratio
        clipped = -advantage * clamp(ratio, low, high)
        is_clipped = clipped > unclipped
        loss = tl.where(is_clipped, clipped, unclipped)
        has_grad = ~is_clipped
        if HAS_DUAL_CLIP:
            is_dual_clipped = (advantage < 0) & (-advantage * dual_clip < loss)
            loss = tl.where(is_dual_clipped, -advantage * dual_clip, loss)
            has_grad &= ~is_dual_clipped
        if LOSS == GSPO:
            grad = sequence_grad
        elif LOSS == GSPO_TOKEN:
            grad = tl.where(has_grad, unclipped * sequence_grad, 0.0)
        else:
            grad = tl.where(has_grad & inside, unclipped, 0.0)
    return loss, grad, is_clipped, is_dual_clipped


@triton.jit
def sequence_terms(sequences, start, size, length, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """The four terms of the sequence of each token of the block at `start`."""
    positions = start + tl.arange(0, BLOCK)
    last = tl.load(sequences.first_ptr + start // BLOCK)
    index = tl.zeros([BLOCK], tl.int32) + last
    boundary = start_of(last + 1, sequences.cu_seqlens_ptr, length)
    while boundary < tl.minimum(start + BLOCK, size):
        last += 1
        index = tl.where(positions >= boundary, last, index)
        boundary = start_of(last + 1, sequences.cu_seqlens_ptr, length)
    ptrs = sequences.terms_ptr + 4 * index.to(tl.int64)
    return tl.load(ptrs), tl.load(ptrs + 1), tl.load(ptrs + 2), tl.load(ptrs + 3)


@triton.jit(do_not_specialize=["size", "length"])
def _sequence_terms_fwd_kernel(
    terms_ptr,  # [batch, 4]
    tokens,
    mask_ptr,
    cu_seqlens_ptr,
    size,
    length,
    ratio_low: tl.float64,
    ratio_high: tl.float64,
    dual_clip: tl.float64,
    importance_floor: tl.float64,
    importance_cap: tl.float64,
    LOSS: tl.constexpr,
    IMPORTANCE_LEVEL: tl.constexpr,
    MASKS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The terms of one sequence.

    gspo   s = e^clamp(mean of log r),  grad = -s / n * (sum of the advantages whose loss is not clipped)
    gmpo   s = e^(mean of clip(log r)),  grad = -s / n * sum of advantages, 0 beyond dual_clip
    """
    HAS_OLD: tl.constexpr = tokens.old_logprobs_ptr is not None
    HAS_ROLLOUT: tl.constexpr = tokens.rollout_logprobs_ptr is not None
    low = tl.full([], ratio_low, DTYPE)
    high = tl.full([], ratio_high, DTYPE)
    dual = tl.full([], dual_clip, DTYPE)
    floor = tl.full([], importance_floor, DTYPE)
    cap = tl.full([], importance_cap, DTYPE)
    log_weights = tl.zeros([BLOCK], tl.float64)
    log_ratios = tl.zeros([BLOCK], tl.float64)
    floored = tl.zeros([BLOCK], tl.float64)
    advantages = tl.zeros([BLOCK], DTYPE)
    negatives = tl.zeros([BLOCK], DTYPE)
    count = tl.zeros([BLOCK], tl.int32)
    begin = start_of(tl.program_id(0), cu_seqlens_ptr, length)
    end = start_of(tl.program_id(0) + 1, cu_seqlens_ptr, length)
    start = begin // ALIGNMENT * ALIGNMENT
    while start < end:
        positions = start + tl.arange(0, BLOCK)
        valid, block = load_block(tokens, mask_ptr, start, size, DTYPE, BLOCK)
        valid = valid & (positions >= begin) & (positions < end)
        logp, old, advantage, _, _, rollout = block
        if not HAS_OLD:
            old = logp
        if HAS_ROLLOUT:
            if IMPORTANCE_LEVEL == 0:
                weight = exp(clamp(old - rollout, -20.0, 20.0))
                advantage *= bound_importance(weight, floor, cap, MASKS)
            else:
                log_weights += tl.where(valid, old.to(tl.float64) - rollout.to(tl.float64), 0.0)
        advantage = tl.where(valid, advantage, 0.0)
        if LOSS == GMPO:
            log_ratio = clamp(logp - old, -20.0, 20.0)
            log_ratios += tl.where(valid, tl.where(log_ratio > high, high, log_ratio), 0.0).to(tl.float64)
            floored += tl.where(valid, tl.where(log_ratio < low, low, log_ratio), 0.0).to(tl.float64)
            advantages += advantage
        else:
            log_ratios += tl.where(valid, logp.to(tl.float64) - old.to(tl.float64), 0.0)
            advantages += tl.where(advantage > 0, advantage, 0.0)
            negatives += tl.where(advantage > 0, 0.0, advantage)
        count += valid.to(tl.int32)
        start += BLOCK
    total = tl.maximum(tl.sum(count, 0), 1).to(tl.float64)
    importance = tl.full([], 1.0, DTYPE)
    if HAS_ROLLOUT and IMPORTANCE_LEVEL > 0:
        log_weight = tl.sum(log_weights, 0)
        if IMPORTANCE_LEVEL == 2:
            log_weight /= total
        importance = bound_importance(exp(clamp(log_weight, -20.0, 20.0)).to(DTYPE), floor, cap, MASKS)
    log_ratio = tl.sum(log_ratios, 0) / total
    advantage = tl.sum(advantages, 0) * importance
    if LOSS == GMPO:
        log_ratio = tl.where(advantage < 0, tl.sum(floored, 0) / total, log_ratio)
        ratio = exp(clamp(log_ratio, -20.0, 20.0)).to(DTYPE)
        grad = tl.where((advantage < 0) & (ratio > dual), 0.0, -advantage / total.to(DTYPE) * ratio)
    else:
        ratio = exp(clamp(log_ratio, -20.0, 20.0)).to(DTYPE)
        negative = tl.sum(negatives, 0) * importance
        unclipped = tl.where(ratio > high, 0.0, advantage)
        unclipped += tl.where((ratio < low) | (ratio > dual), 0.0, negative)
        grad = -unclipped / total.to(DTYPE) * ratio
        if LOSS == GSPO_TOKEN:
            grad = tl.full([], 1.0, DTYPE)
        grad = tl.where((log_ratio < -20.0) | (log_ratio > 20.0), 0.0, grad)
    terms_ptr += 4 * tl.program_id(0).to(tl.int64)
    tl.store(terms_ptr, importance)
    tl.store(terms_ptr + 1, ratio)
    tl.store(terms_ptr + 2, grad)
    tl.store(terms_ptr + 3, advantage)
