"""The PPO loss with every option of `PPOLossConfig`, and the aggregation it shares with the value loss."""

from __future__ import annotations

import torch
from torch import Tensor

from fgrl.reference._common import Rows, as_mask, select
from fgrl.reference._policy import LOG_RATIO_BOUND, importance_weight, policy_terms
from fgrl.types import Aggregation, KLEstimator, PPOLoss, PPOLossConfig, compute_dtype


def ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    ref_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    config: PPOLossConfig = PPOLossConfig(),
) -> PPOLoss:
    """See `fgrl.ops.ppo_loss`.

    Per valid token, with advantage `A` and importance weight `w`, 1 without `rollout_logprobs`:

        token = policy(w * A) + kl_coef * KL(logp, ref) - entropy_coef * entropy

    where `policy` is the loss that `config.loss` names, with `ratio = exp(clamp(logp - old, -20, 20))`; see
    `fgrl.reference._policy`.
    """
    dtype = compute_dtype(logprobs, old_logprobs, advantages, ref_logprobs, entropy, rollout_logprobs)
    valid, rows = as_mask(mask, logprobs), Rows(cu_seqlens)

    logp = select(logprobs, valid, dtype)
    old = logp.detach() if old_logprobs is None else select(old_logprobs.detach(), valid, dtype)
    advantage = select(advantages.detach(), valid, dtype)
    if rollout_logprobs is not None:
        advantage = advantage * importance_weight(old, select(rollout_logprobs, valid, dtype), valid, rows, config)
    loss, ratio, is_clipped, is_dual_clipped = policy_terms(logp, old, advantage, valid, rows, config)
    log_ratio = (logp - old).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)

    kl = torch.zeros_like(logp)
    if ref_logprobs is not None:
        kl = _kl_term(logp, select(ref_logprobs.detach(), valid, dtype), log_ratio, config.kl_estimator)
    bonus = torch.zeros_like(logp) if entropy is None else select(entropy, valid, dtype)

    def aggregate(values: Tensor) -> Tensor:
        return aggregate_tokens(values, valid, config.aggregation, normalizer, cu_seqlens)

    def mean(values: Tensor) -> Tensor:
        return aggregate_tokens(values.detach(), valid, "token-mean", None, None)

    parts = {"policy_loss": aggregate(loss), "kl": aggregate(kl), "entropy": aggregate(bonus)}
    total = parts["policy_loss"]
    if config.kl_coef:
        total = total + config.kl_coef * parts["kl"]
    if config.entropy_coef:
        total = total - config.entropy_coef * parts["entropy"]
    ratio = select(ratio.detach(), valid, dtype)
    ratio_max = ratio.amax() if ratio.numel() else ratio.sum()
    stats = {
        **{name: part.detach() for name, part in parts.items()},
        "clip_fraction": mean(select(is_clipped, valid, dtype)),
        "clip_fraction_lower": mean(select(is_dual_clipped, valid, dtype)),
        "approx_kl": mean(-log_ratio),
        "ratio_mean": mean(ratio),
        "ratio_max": ratio_max,
        "tokens": valid.sum().to(dtype),
    }
    return PPOLoss(total, stats)


def kl_value(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(policy || ref) from samples of the policy; a "+" does not change the value.

    k1 = d,  k2 = d^2 / 2,  k3 = exp(-d) + d - 1,  "abs" = |d|,   d = logp - ref
    """
    difference = logprobs - ref_logprobs
    kind = estimator.removesuffix("+")
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return torch.expm1(-difference) + difference
    return difference.abs()


def aggregate_tokens(
    values: Tensor,
    mask: Tensor,
    aggregation: Aggregation,
    normalizer: float | Tensor | None,
    cu_seqlens: Tensor | None,
) -> Tensor:
    """Reduce per-token values, already 0 where `mask` is false, to a 0-d tensor.

        token-mean           sum over tokens / number of valid tokens
        token-sum            sum over tokens
        seq-mean-token-sum   sum over tokens / number of sequences with a valid token
        seq-mean-token-mean  sum over sequences of (sum over tokens / valid tokens) / number of such sequences

    `normalizer` replaces the last denominator (1 for token-sum). A tensor of 0, the count of a fully masked global
    batch, counts as 1, so that the result is 0 and not NaN.
    """
    if aggregation.startswith("seq-"):
        rows = Rows(cu_seqlens)
        counts = rows.split(mask).sum(1)  # [B]
        per_sequence = rows.split(values).sum(1)
        if aggregation == "seq-mean-token-mean":
            per_sequence = per_sequence / counts.clamp(min=1)
        total, local_count = per_sequence.sum(), (counts > 0).sum()
    else:
        total, local_count = values.sum(), mask.sum()
    if isinstance(normalizer, Tensor):
        denominator = normalizer.reshape(()).to(total.dtype)
        return total / torch.where(denominator == 0, 1, denominator)
    if normalizer is not None:
        return total / normalizer
    return total if aggregation == "token-sum" else total / local_count.clamp(min=1)


def _kl_term(logp: Tensor, ref: Tensor, log_ratio: Tensor, estimator: KLEstimator) -> Tensor:
    """The KL estimate as a loss term.

    Differentiated as written, k1 has a gradient of mean 0 and k3 one that is not the gradient of KL(policy || ref);
    k2's is, in expectation over the policy's own samples. A "+" keeps the value and takes that gradient, weighted by
    the token's ratio as a constant, because off-policy the samples are the old policy's.
    """
    value = kl_value(logp, ref, estimator)
    if not estimator.endswith("+"):
        return value
    carrier = kl_value(logp, ref, "k2")
    return value.detach() + log_ratio.detach().exp() * (carrier - carrier.detach())
