"""The policy losses and their gradients as scalar loops over one sequence, from the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Term(NamedTuple):
    """`grad`: the derivative by the token's log-probability of the sum of the losses of its sequence."""

    loss: float
    grad: float
    ratio: float
    is_clipped: bool
    is_dual_clipped: bool


def clamp(x: float) -> float:
    return max(-20.0, min(20.0, x))


def importance_weights(
    old: Sequence[float], rollout: Sequence[float], level: str, mode: str, floor: float | None, cap: float | None
) -> list[float]:
    gaps = [before - sampled for before, sampled in zip(old, rollout, strict=True)]
    if level == "sequence":
        gaps = [math.fsum(gaps)] * len(gaps)
    elif level == "geometric":
        gaps = [math.fsum(gaps) / len(gaps)] * len(gaps)
    weights = [math.exp(clamp(gap)) for gap in gaps]
    low, high = 0.0 if floor is None else floor, math.inf if cap is None else cap
    if mode == "mask":
        return [weight if low <= weight <= high else 0.0 for weight in weights]
    return [min(max(weight, low), high) for weight in weights]


def surrogate(
    ratio: float, advantage: float, low: float, high: float, dual_clip: float | None
) -> tuple[float, bool, bool]:
    """The clipped surrogate of one ratio and one advantage: its loss, and which of the two clips is active."""
    loss, is_clipped, is_dual = -advantage * ratio, False, False
    clipped = -advantage * min(max(ratio, 1 - low), 1 + high)
    if clipped > loss:
        loss, is_clipped = clipped, True
    if dual_clip is not None and advantage < 0 and loss > -advantage * dual_clip:
        loss, is_dual = -advantage * dual_clip, True
    return loss, is_clipped, is_dual


def sequence(
    logprobs: Sequence[float],
    old: Sequence[float],
    advantages: Sequence[float],
    rollout: Sequence[float] | None,
    loss: str = "clip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    importance_cap: float | None = None,
    importance_floor: float | None = None,
    importance_level: str = "token",
    importance_mode: str = "truncate",
) -> list[Term]:
    """One term a valid token of one sequence, in order."""
    if not logprobs:
        return []
    if rollout is not None:
        weights = importance_weights(old, rollout, importance_level, importance_mode, importance_floor, importance_cap)
        advantages = [weight * advantage for weight, advantage in zip(weights, advantages, strict=True)]
    length = len(logprobs)
    gaps = [logp - before for logp, before in zip(logprobs, old, strict=True)]
    terms = []
    if loss in ("gspo", "gspo-token"):
        mean = math.fsum(gaps) / length
        ratio, inside = math.exp(clamp(mean)), abs(mean) <= 20
        parts = [surrogate(ratio, advantage, clip_low, clip_high, dual_clip) for advantage in advantages]
        own = [
            0.0 if is_clipped or is_dual or not inside else -advantage * ratio
            for advantage, (_, is_clipped, is_dual) in zip(advantages, parts, strict=True)
        ]
        # s_i = exp(mean of log r_t): d s_i / d logp_t = s_i / length, for every loss of the sequence that s_i is in.
        shared = math.fsum(own) / length
        return [
            Term(value, shared if loss == "gspo" else grad, ratio, is_clipped, is_dual)
            for grad, (value, is_clipped, is_dual) in zip(own, parts, strict=True)
        ]
    if loss == "gmpo":
        total = math.fsum(advantages)
        logs = [clamp(gap) for gap in gaps]
        kept = [max(x, -clip_low) if total < 0 else min(x, clip_high) for x in logs]
        ratio = math.exp(math.fsum(kept) / length)
        is_dual = dual_clip is not None and total < 0 and ratio > dual_clip
        for gap, x, y, advantage in zip(gaps, logs, kept, advantages, strict=True):
            grad = 0.0 if x != y or is_dual or abs(gap) > 20 else -total * ratio / length
            terms.append(Term(-advantage * (dual_clip if is_dual else ratio), grad, ratio, x != y, is_dual))  # type: ignore[operator]
        return terms
    for logp, gap, advantage in zip(logprobs, gaps, advantages, strict=True):
        ratio, inside = math.exp(clamp(gap)), abs(gap) <= 20
        if loss == "reinforce":
            terms.append(Term(-advantage * logp, -advantage, ratio, False, False))
        elif loss == "cispo":
            weight = min(max(ratio, 1 - clip_low), 1 + clip_high)
            terms.append(Term(-weight * advantage * logp, -weight * advantage, ratio, weight != ratio, False))
        elif loss == "sapo":
            tau = tau_positive if advantage > 0 else tau_negative
            gate = 1 / (1 + math.exp(min(700.0, -tau * (ratio - 1))))
            grad = -4 * gate * (1 - gate) * ratio * advantage if inside else 0.0
            terms.append(Term(-4 / tau * gate * advantage, grad, ratio, False, False))
        else:
            value, is_clipped, is_dual = surrogate(ratio, advantage, clip_low, clip_high, dual_clip)
            grad = 0.0 if is_clipped or is_dual or not inside else -advantage * ratio
            terms.append(Term(value, grad, ratio, is_clipped, is_dual))
    return terms
