"""The policy losses of `PPOLossConfig.loss` and the importance weights of the rollout, token by token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgrl.reference._common import Rows
from fgrl.types import PPOLossConfig

LOG_RATIO_BOUND = 20.0


class PolicyTerms(NamedTuple):
    """Of one shape, that of the log-probabilities."""

    loss: Tensor
    ratio: Tensor
    """Of the token, or of its sequence in the losses that are about sequences."""
    is_clipped: Tensor
    is_dual_clipped: Tensor


def policy_terms(
    logp: Tensor, old: Tensor, advantage: Tensor, valid: Tensor, rows: Rows, config: PPOLossConfig
) -> PolicyTerms:
    """See `PPOLossConfig`: `advantage` already carries the importance weight; everything is 0 where not `valid`.

    clip         max(-A r, -A clip(r)),  at most -A dual_clip where A < 0
    gspo         the same with s for r:  log s = mean of log r over the sequence
    gspo-token   the same with sg[s] pi / sg[pi] for r
    gmpo         -A s:  log s = mean over the sequence of min(log r, clip_high) if its sum of A >= 0, else of
                 max(log r, -clip_low); there at most -A dual_clip
    cispo        -A sg[clip(r)] logp
    sapo         -A 4 / tau sigmoid(tau (r - 1))
    reinforce    -A logp
    """
    log_ratio = _clamp(logp - old)
    ratio = log_ratio.exp()
    nothing = torch.zeros_like(valid)
    if config.loss == "reinforce":
        return PolicyTerms(-advantage * logp, ratio, nothing, nothing)
    if config.loss == "sapo":
        tau = torch.where(advantage > 0, config.tau_positive, config.tau_negative).to(ratio.dtype)
        gate = 4 / tau * torch.sigmoid(tau * (ratio - 1))
        return PolicyTerms(-advantage * gate, ratio, nothing, nothing)
    if config.loss == "cispo":
        low, high, constant = 1 - config.clip_low, 1 + config.clip_high, ratio.detach()
        is_clipped = (constant < low) | (constant > high)
        return PolicyTerms(-advantage * constant.clamp(low, high) * logp, ratio, is_clipped, nothing)
    if config.loss == "gmpo":
        is_negative = over_sequence(advantage, valid, rows) < 0
        is_clipped = torch.where(is_negative, log_ratio < -config.clip_low, log_ratio > config.clip_high)
        pessimistic = torch.where(
            is_negative, log_ratio.clamp(min=-config.clip_low), log_ratio.clamp(max=config.clip_high)
        )
        ratio = over_sequence(torch.where(valid, pessimistic, 0), valid, rows, is_mean=True).exp()
        bounded, is_dual_clipped = ratio, nothing
        if config.dual_clip is not None:
            is_dual_clipped = is_negative & (ratio > config.dual_clip)
            bounded = torch.where(is_dual_clipped, config.dual_clip, ratio)
        return PolicyTerms(-advantage * bounded, ratio, is_clipped, is_dual_clipped)
    if config.loss == "gspo":
        ratio = _clamp(over_sequence(logp - old, valid, rows, is_mean=True)).exp()
    elif config.loss == "gspo-token":
        mean = over_sequence(logp - old, valid, rows, is_mean=True).detach()
        ratio = _clamp(mean + (logp - logp.detach())).exp()
    unclipped = -advantage * ratio
    clipped = -advantage * ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    loss = torch.maximum(unclipped, clipped)
    is_dual_clipped = nothing
    if config.dual_clip is not None:
        bound = -advantage * config.dual_clip
        is_dual_clipped = (advantage < 0) & (bound < loss)
        loss = torch.where(is_dual_clipped, bound, loss)
    return PolicyTerms(loss, ratio, clipped > unclipped, is_dual_clipped)


def importance_weight(old: Tensor, rollout: Tensor, valid: Tensor, rows: Rows, config: PPOLossConfig) -> Tensor:
    """`w = exp(clamp(old - rollout, -20, 20))` of the token, of its sequence or their geometric mean; no gradient.

    "truncate" bounds it by `[importance_floor, importance_cap]`, "mask" makes it 0 outside.
    """
    log_weight = (old - rollout).detach()
    if config.importance_level != "token":
        log_weight = over_sequence(log_weight, valid, rows, is_mean=config.importance_level == "geometric")
    weight = _clamp(log_weight).exp()
    if config.importance_mode == "truncate":
        if config.importance_cap is not None:
            weight = weight.clamp(max=config.importance_cap)
        return weight if config.importance_floor is None else weight.clamp(min=config.importance_floor)
    is_outside = torch.zeros_like(valid)
    if config.importance_cap is not None:
        is_outside = is_outside | (weight > config.importance_cap)
    if config.importance_floor is not None:
        is_outside = is_outside | (weight < config.importance_floor)
    return torch.where(is_outside, 0, weight)


def over_sequence(values: Tensor, valid: Tensor, rows: Rows, *, is_mean: bool = False) -> Tensor:
    """At every token the sum, or the mean over valid tokens, of its sequence; `values` are 0 where not `valid`."""
    per_row = rows.split(values)  # [B, T]
    total = per_row.sum(1, keepdim=True)
    if is_mean:
        total = total / rows.split(valid).sum(1, keepdim=True).clamp(min=1)
    return rows.join(total.expand_as(per_row))


def _clamp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
