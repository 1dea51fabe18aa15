"""The PPO loss and its relatives: loss, statistics and the gradient of each token in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._aggregate import BLOCK, WARPS, Aggregation, larger, programs, token_weights
from fgrl.kernels._blocks import load_block, store_block, store_sums, total
from fgrl.kernels._kl import kl_value
from fgrl.kernels._launch import FUSION, Case, flags, flat, on_device
from fgrl.kernels._policy import (
    GMPO,
    Sequences,
    _sequence_terms_fwd_kernel,
    bound_importance,
    clamp,
    exp,
    has_sequence_ratio,
    policy_terms,
    sequence_terms,
)
from fgrl.types import PolicyLoss, compute_dtype

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
def _kl_grad(difference, value, KIND: tl.constexpr):
    """The derivative of `kl_value` by logp. |d| has none at 0, where it is taken as 0."""
    if KIND == 0:
        return tl.full(difference.shape, 1.0, difference.dtype)
    elif KIND == 1:
        return difference
    elif KIND == 2:
        return tl.where(tl.abs(difference) < 1, difference - value, 1.0 - tl.exp(-difference))
    else:
        return tl.where(difference < 0, -1.0, tl.where(difference > 0, 1.0, difference))


@triton.jit(do_not_specialize=["size", "blocks", "length"])
def _ppo_loss_fwd_kernel(
    logprobs_grad_ptr,
    entropy_grad_ptr,
    partial_ptr,  # [9, programs] fp64
    tokens,
    mask_ptr,
    weights,
    sequences,
    size,
    blocks,
    length,
    ratio_low: tl.float64,
    ratio_high: tl.float64,
    dual_clip: tl.float64,
    kl_coef: tl.float64,
    entropy_coef: tl.float64,
    importance_cap: tl.float64,
    importance_floor: tl.float64,
    tau_positive: tl.float64,
    tau_negative: tl.float64,
    LOSS: tl.constexpr,
    HAS_SEQUENCE_RATIO: tl.constexpr,
    IMPORTANCE_LEVEL: tl.constexpr,
    MASKS_IMPORTANCE: tl.constexpr,
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
    l     = max(-A * ratio, -A * clip(ratio)),  at most -A * dual_clip where A < 0, or another policy loss
    loss  = v * (l + kl_coef * KL(logp, ref) - entropy_coef * entropy),  v by the token's sequence
    d loss / d logp = v * (-A * ratio + kl_coef * KL'),  the first term only where nothing was clipped

    where `A` carries the importance weight.
    """
    HAS_OLD: tl.constexpr = tokens.old_logprobs_ptr is not None
    HAS_REF: tl.constexpr = tokens.ref_logprobs_ptr is not None
    HAS_ROLLOUT: tl.constexpr = tokens.rollout_logprobs_ptr is not None
    low = tl.full([], ratio_low, DTYPE)
    high = tl.full([], ratio_high, DTYPE)
    bound = tl.full([], dual_clip, DTYPE)
    kl_weight = tl.full([], kl_coef, DTYPE)
    entropy_grad = -tl.full([], entropy_coef, DTYPE)
    cap = tl.full([], importance_cap, DTYPE)
    floor = tl.full([], importance_floor, DTYPE)
    positive = tl.full([], tau_positive, DTYPE)
    negative = tl.full([], tau_negative, DTYPE)
    HAS_SEQUENCES: tl.constexpr = sequences.terms_ptr is not None
    policy = tl.zeros([BLOCK], DTYPE)
    kl = tl.zeros([BLOCK], DTYPE)
    bonus = tl.zeros([BLOCK], DTYPE)
    clip_count = tl.zeros([BLOCK], tl.int32)
    dual_clip_count = tl.zeros([BLOCK], tl.int32)
    log_ratios = tl.zeros([BLOCK], DTYPE)
    ratios = tl.zeros([BLOCK], DTYPE)
    max_ratio = tl.zeros([BLOCK], DTYPE)
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
        log_ratio = clamp(difference, -20.0, 20.0)
        importance = tl.full([BLOCK], 1.0, DTYPE)
        ratio = importance
        shared_grad = importance
        shared_advantage = importance
        if HAS_SEQUENCES:
            shared = sequence_terms(sequences, start, size, length, DTYPE, BLOCK)
            importance, ratio, shared_grad, shared_advantage = shared
        if not HAS_SEQUENCE_RATIO:
            ratio = exp(log_ratio)
        if HAS_ROLLOUT:
            if IMPORTANCE_LEVEL == 0:
                importance = bound_importance(exp(clamp(old - rollout, -20.0, 20.0)), floor, cap, MASKS_IMPORTANCE)
            advantage *= importance
        loss, grad, is_clipped, is_dual_clipped = policy_terms(
            logp,
            difference,
            ratio,
            advantage,
            shared_grad,
            shared_advantage,
            low,
            high,
            bound,
            positive,
            negative,
            LOSS,
            HAS_DUAL_CLIP,
        )
        if HAS_DUAL_CLIP:
            dual_clip_count += (is_dual_clipped & valid).to(tl.int32)
        if HAS_REF:
            gap = logp - ref
            divergence = kl_value(gap, KL_KIND)
            kl += weight * divergence
            if KL_IN_LOSS:
                if KL_KIND < 4:
                    grad += kl_weight * _kl_grad(gap, divergence, KL_KIND)
                elif HAS_SEQUENCE_RATIO:
                    grad += kl_weight * (exp(log_ratio) * gap)
                else:
                    grad += kl_weight * (ratio * gap)
        if GRAD_LOGPROBS:
            store_block(logprobs_grad_ptr, start, size, tl.where(valid, weight * grad, 0.0))
        if GRAD_ENTROPY:
            store_block(entropy_grad_ptr, start, size, tl.where(valid, entropy_grad * weight, 0.0))

        policy += weight * loss
        bonus += weight * entropy
        clip_count += is_clipped.to(tl.int32)
        log_ratios += log_ratio
        ratio = tl.where(valid, ratio, 0.0)
        ratios += ratio
        max_ratio = larger(ratio, max_ratio)
        count += valid.to(tl.int32)
        start += programs * BLOCK
    store_sums(
        partial_ptr,
        (
            total(policy),
            total(kl),
            total(bonus),
            tl.sum(clip_count, 0),
            tl.sum(dual_clip_count, 0),
            -total(log_ratios),
            total(ratios),
            tl.reduce(max_ratio, 0, larger),
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
    policy_loss: int,
    tau_positive: float,
    tau_negative: float,
    importance_floor: float,
    importance_level: int,
    importance_mask: bool,
    grad_logprobs: bool,
    grad_entropy: bool,
    *,
    block: int = BLOCK,
    max_programs: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, statistics, and gradients up to a scale; see `fgrl.ops.ppo_loss`.

    Reads every input once and writes every gradient once, 17 bytes a token in fp32 without options; the mask is read
    twice for seq-mean-token-mean. Where tokens depend on their sequence, one program a sequence reads it once before.
    """
    dtype = compute_dtype(logprobs, old_logprobs, advantages, ref_logprobs, entropy, rollout_logprobs)
    logprobs_grad, entropy_grad = (
        torch.empty(logprobs.shape if wanted else 0, dtype=dtype, device=logprobs.device)
        for wanted in (grad_logprobs, grad_entropy)
    )
    tokens = Tokens(*map(flat, (logprobs, old_logprobs, advantages, ref_logprobs, entropy, rollout_logprobs)))
    size, mask = logprobs.numel(), flags(mask)
    needs_sequences = has_sequence_ratio(policy_loss) or (rollout_logprobs is not None and importance_level > 0)
    if needs_sequences:
        block //= 2  # what tokens share with their sequence takes registers
    middle = 0.0 if policy_loss == GMPO.value else 1.0  # GMPO's bounds are those of the log-ratio
    triton_dtype = tl.float64 if dtype == torch.float64 else tl.float32
    columns = programs(size, block, logprobs.device, max_programs)
    partial = torch.empty(_STATISTICS, columns, dtype=torch.float64, device=logprobs.device)
    with on_device(logprobs):
        aggregator = Aggregation(
            aggregation, logprobs, mask, normalizer, cu_seqlens, denominator, block, finds_sequences=needs_sequences
        )
        sequences = Sequences()
        if needs_sequences:
            found = aggregator.sequences
            assert found.counts_ptr is not None
            terms = torch.empty(found.counts_ptr.shape[0], 4, dtype=dtype, device=logprobs.device)
            sequences = Sequences(terms, found.first_ptr, found.cu_seqlens_ptr)
            if terms.shape[0]:
                _sequence_terms_fwd_kernel[(terms.shape[0],)](
                    terms,
                    tokens._replace(ref_logprobs_ptr=None, entropy_ptr=None),
                    mask,
                    found.cu_seqlens_ptr,
                    size,
                    logprobs.shape[-1],
                    ratio_low=middle - clip_low,
                    ratio_high=middle + clip_high,
                    dual_clip=dual_clip,
                    importance_floor=importance_floor,
                    importance_cap=importance_cap,
                    LOSS=policy_loss,
                    IMPORTANCE_LEVEL=importance_level,
                    MASKS=importance_mask,
                    DTYPE=triton_dtype,
                    BLOCK=block,
                    num_warps=WARPS,
                    **FUSION,
                )
        _ppo_loss_fwd_kernel[(columns,)](
            logprobs_grad,
            entropy_grad,
            partial,
            tokens,
            mask,
            aggregator.weights,
            sequences,
            size,
            triton.cdiv(size, block),
            logprobs.shape[-1],
            ratio_low=middle - clip_low,
            ratio_high=middle + clip_high,
            dual_clip=dual_clip,
            kl_coef=kl_coef,
            entropy_coef=entropy_coef,
            importance_cap=importance_cap,
            importance_floor=importance_floor,
            tau_positive=tau_positive,
            tau_negative=tau_negative,
            LOSS=policy_loss,
            HAS_SEQUENCE_RATIO=has_sequence_ratio(policy_loss),
            IMPORTANCE_LEVEL=importance_level,
            MASKS_IMPORTANCE=importance_mask,
            KL_KIND=kl_estimator,
            KL_IN_LOSS=kl_coef != 0,
            HAS_DUAL_CLIP=math.isfinite(dual_clip),
            GRAD_LOGPROBS=grad_logprobs,
            GRAD_ENTROPY=grad_entropy,
            DTYPE=triton_dtype,
            BLOCK=block,
            num_warps=WARPS,
            **FUSION,
        )
        loss, stats, scale = aggregator.finish(partial, dtype, (1.0, kl_coef, -entropy_coef), has_max=True)
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
        policy_loss: int = 0,
        importance_level: int = 0,
    ) -> Case:
        shape = (4096 * 1000,) if packed else (4096, 1000)
        tokens = meta(*shape, dtype=dtype)
        mask = meta(*shape, dtype=torch.bool)
        option = tokens if options else None
        tensors = (tokens, tokens, tokens, mask, option, option, option, normalizer)
        cu_seqlens = meta(4097, dtype=torch.int32) if packed else None
        coefficients = (0.2, 0.2, 3.0, 0.1 * options, estimator, 0.1 * options, 2.0)
        coefficients += (policy_loss, 1.0, 1.05, 0.5, importance_level, importance_level > 0)
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
    for policy_loss in range(1, len(get_args(PolicyLoss))):
        yield case(f"policy loss {policy_loss}", policy_loss=policy_loss)
        yield case(f"policy loss {policy_loss} all inputs", options=True, estimator=6, policy_loss=policy_loss)
    yield case("gspo fp64 packed", torch.float64, options=True, aggregation=3, packed=True, policy_loss=1)
    for level in (1, 2):
        yield case(f"importance level {level}", options=True, importance_level=level, packed=level == 2)
