"""Every op once more as scalar loops over Python floats, written from the design and not from the implementation.

An oracle sees a batch as flat float64 arrays and a list of *sequences*: the flat indices of each sequence's valid
tokens, in order (`sequences_of`). Padding, packing and holes are then the same thing, so no oracle can get the
masks wrong, and none shares a line with `fgrl`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import policy_oracles
import torch

Array = Any  # a float64 numpy array
Sequences = list[list[int]]


def flat(tensor: torch.Tensor | None) -> Array:
    """The values of a tensor as a flat float64 array."""
    return None if tensor is None else tensor.detach().to(torch.float64).reshape(-1).numpy().copy()


def sequences_of(shape: Sequence[int], mask: torch.Tensor | None = None, cu_seqlens: Any = None) -> Sequences:
    """Flat indices of the valid tokens of each row of `[B, T]`, or of each sequence of packed `[N]`."""
    total = math.prod(shape)
    if cu_seqlens is None:
        width = shape[-1]
        bounds = [(row * width, (row + 1) * width) for row in range(shape[0])]
    else:
        edges = [int(edge) for edge in cu_seqlens]
        bounds = list(itertools.pairwise(edges))
    valid = [True] * total if mask is None else [bool(flag) for flag in mask.reshape(-1).tolist()]
    return [[index for index in range(start, end) if valid[index]] for start, end in bounds]


def central_difference(function: Callable[[Array], float], point: Array, step: float = 1e-6) -> Array:
    """Gradient of a scalar function of a flat array, two evaluations an element."""
    gradient = np.zeros_like(point)
    for index in range(point.size):
        above, below = point.copy(), point.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (function(above) - function(below)) / (2 * step)
    return gradient


def token_reward_head(hidden: Array, weight: Array, bias: Array = None, norm_weight: Array = None, eps: float = 1e-6):
    """`hidden [N, D]`, `weight [K, D]` -> `[N, K]`."""
    rewards = np.zeros((hidden.shape[0], weight.shape[0]))
    for n, row in enumerate(hidden):
        scale = 1.0
        if norm_weight is not None:
            scale = 1.0 / math.sqrt(sum(float(x) * float(x) for x in row) / len(row) + eps)
        for k, head in enumerate(weight):
            total = 0.0 if bias is None else float(bias[k])
            for d in range(len(row)):
                gain = 1.0 if norm_weight is None else float(norm_weight[d])
                total += float(row[d]) * scale * gain * float(head[d])
            rewards[n, k] = total
    return rewards


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def edit_preference_loss(
    sides: Sequence[tuple[Array, Sequences, set[int]]],
    reduction: str = "sum",
    unchanged_weight: float = 0.0,
    margin: float = 0.0,
) -> tuple[float, list[float]]:
    """`sides`: rewards, response tokens and edited indices, of the chosen and then of the rejected responses."""
    losses, margins = [], []
    for pair in range(len(sides[0][1])):
        scores, squares = [], []
        for rewards, sequences, edits in sides:
            edited = [float(rewards[t]) for t in sequences[pair] if t in edits]
            squares += [float(rewards[t]) ** 2 for t in sequences[pair] if t not in edits]
            scores.append(sum(edited) / (max(len(edited), 1) if reduction == "mean" else 1))
        margins.append(scores[0] - scores[1])
        penalty = sum(squares) / len(squares) if squares else 0.0
        losses.append(-log_sigmoid(margins[-1] - margin) + unchanged_weight * penalty)
    return sum(losses) / max(len(losses), 1), margins


def gae(
    rewards: Array, values: Array, sequences: Sequences, gamma: float, lam: Sequence[float], bootstrap: Sequence[float]
) -> tuple[Array, Array]:
    """The textbook double sum, quadratic in the length: `A_t = sum_k (gamma lam)^k delta_{t+k}`."""
    advantages, returns = np.zeros_like(rewards), np.zeros_like(rewards)
    for row, tokens in enumerate(sequences):
        after = [float(values[t]) for t in tokens] + [float(bootstrap[row])]
        deltas = [float(rewards[t]) + gamma * after[i + 1] - after[i] for i, t in enumerate(tokens)]
        for i, t in enumerate(tokens):
            advantages[t] = sum((gamma * lam[row]) ** k * delta for k, delta in enumerate(deltas[i:]))
            returns[t] = advantages[t] + float(values[t])
    return advantages, returns


def kl_value(estimator: str, logprob: float, ref: float) -> float:
    difference = logprob - ref
    name = estimator.rstrip("+")
    if name == "k1":
        return difference
    if name == "k2":
        return difference**2 / 2
    if name == "k3":
        return math.exp(-difference) + difference - 1
    return abs(difference)


def kl_grad(estimator: str, logprob: float, ref: float) -> float:
    """Derivative of the *loss term* by logprob; a `+` suffix takes k2's."""
    difference = logprob - ref
    if estimator.endswith("+") or estimator == "k2":
        return difference
    if estimator == "k1":
        return 1.0
    if estimator == "k3":
        return 1 - math.exp(-difference)
    return math.copysign(1.0, difference) if difference else 0.0


def token_advantages(
    token_rewards: Array,
    values: Array,
    logprobs: Array,
    ref_logprobs: Array,
    sequences: Sequences,
    sequence_rewards: Sequence[float] | None = None,
    reward_scale: float = 1.0,
    reward_clip: float | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k1",
    gamma: float = 1.0,
    lam: Sequence[float] = (),
    bootstrap: Sequence[float] = (),
) -> tuple[Array, Array, Array, list[float]]:
    shaped, kl = np.zeros_like(token_rewards), np.zeros_like(token_rewards)
    for row, tokens in enumerate(sequences):
        for t in tokens:
            reward = float(token_rewards[t])
            if reward_clip is not None:
                reward = max(-reward_clip, min(reward_clip, reward))
            kl[t] = kl_value(kl_estimator, float(logprobs[t]), float(ref_logprobs[t]))
            shaped[t] = reward_scale * reward - kl_coef * kl[t]
        if tokens and sequence_rewards is not None:
            shaped[tokens[-1]] += float(sequence_rewards[row])
    advantages, returns = gae(shaped, values, sequences, gamma, lam, bootstrap)
    valid = [float(advantages[t]) for tokens in sequences for t in tokens]
    return advantages, returns, kl, [float(len(valid)), math.fsum(valid), math.fsum(a * a for a in valid)]


def aggregate(terms: Array, sequences: Sequences, aggregation: str, normalizer: float | None) -> float:
    """Sum the per-token terms as `aggregation` says. A sequence without a valid token is no sequence."""
    used = [tokens for tokens in sequences if tokens]
    if aggregation in ("token-mean", "token-sum"):
        total = math.fsum(float(terms[t]) for tokens in used for t in tokens)
        count = sum(len(tokens) for tokens in used) if aggregation == "token-mean" else 1
    else:
        per_sequence = [math.fsum(float(terms[t]) for t in tokens) for tokens in used]
        if aggregation == "seq-mean-token-mean":
            per_sequence = [s / len(tokens) for s, tokens in zip(per_sequence, used, strict=True)]
        total, count = math.fsum(per_sequence), len(used)
    if normalizer is not None:
        count = normalizer
    return total / count if count else 0.0


def weight_of_token(sequences: Sequences, aggregation: str, normalizer: float | None, size: int) -> Array:
    """What a token's term is multiplied with in `aggregate`."""
    weights = np.zeros(size)
    for tokens in sequences:
        for t in tokens:
            unit = np.zeros(size)
            unit[t] = 1.0
            weights[t] = aggregate(unit, sequences, aggregation, normalizer)
    return weights


def ppo_loss(
    logprobs: Array,
    old: Array,
    advantages: Array,
    sequences: Sequences,
    ref: Array = None,
    entropy: Array = None,
    rollout: Array = None,
    normalizer: float | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3+",
    entropy_coef: float = 0.0,
    aggregation: str = "token-mean",
    **options: Any,
) -> dict[str, Any]:
    """Loss, gradient by logprobs and by entropy, and the statistics. `options`: of `policy_oracles.sequence`."""
    size = logprobs.size
    policy, kl, policy_grads, kl_grads, ratios, clipped, lower, log_ratio = (np.zeros(size) for _ in range(8))
    entropies = np.zeros(size) if entropy is None else entropy
    for tokens in sequences:
        before = logprobs if old is None else old
        terms = policy_oracles.sequence(
            *([float(x[t]) for t in tokens] for x in (logprobs, before, advantages)),
            None if rollout is None else [float(rollout[t]) for t in tokens],
            **options,
        )
        for t, term in zip(tokens, terms, strict=True):
            policy[t], policy_grads[t], ratios[t] = term.loss, term.grad, term.ratio
            clipped[t], lower[t] = float(term.is_clipped), float(term.is_dual_clipped)
            log_ratio[t] = max(-20.0, min(20.0, logprobs[t] - before[t]))
            if ref is not None:
                # The gradient of a "+" estimator carries the importance weight of the update, the token's ratio.
                carried = math.exp(log_ratio[t]) if kl_estimator.endswith("+") else 1.0
                kl[t] = kl_value(kl_estimator, float(logprobs[t]), float(ref[t]))
                kl_grads[t] = kl_coef * carried * kl_grad(kl_estimator, float(logprobs[t]), float(ref[t]))
    weights = weight_of_token(sequences, aggregation, normalizer, size)
    valid = [t for tokens in sequences for t in tokens]

    def mean(terms: Array) -> float:
        return aggregate(terms, sequences, "token-mean", None)

    parts = {name: aggregate(x, sequences, aggregation, normalizer) for name, x in
             (("policy_loss", policy), ("kl", kl), ("entropy", entropies))}  # fmt: skip
    return {
        "loss": parts["policy_loss"] + kl_coef * parts["kl"] - entropy_coef * parts["entropy"],
        "logprobs_gradient": weights * (policy_grads + kl_grads),
        "entropy_gradient": -entropy_coef * weights,
        "stats": parts
        | {
            "clip_fraction": mean(clipped),
            "clip_fraction_lower": mean(lower),
            "approx_kl": -mean(log_ratio),
            "ratio_mean": mean(ratios),
            "ratio_max": max((float(ratios[t]) for t in valid), default=0.0),
            "tokens": float(len(valid)),
        },
    }


def value_loss(
    values: Array,
    old: Array,
    returns: Array,
    sequences: Sequences,
    clip: float | None = 0.2,
    normalizer: float | None = None,
    aggregation: str = "token-mean",
) -> tuple[float, Array, float]:
    """Loss, gradient by values, clipped fraction: `0.5 max((v - R)^2, (clip(v, old +- clip) - R)^2)`."""
    terms, grads, clipped = np.zeros(values.size), np.zeros(values.size), np.zeros(values.size)
    for tokens in sequences:
        for t in tokens:
            value, target = float(values[t]), float(returns[t])
            terms[t], grads[t] = 0.5 * (value - target) ** 2, value - target
            if clip is not None and old is not None:
                near = max(float(old[t]) - clip, min(float(old[t]) + clip, value))
                if 0.5 * (near - target) ** 2 > terms[t]:
                    terms[t], grads[t], clipped[t] = 0.5 * (near - target) ** 2, 0.0, 1.0
    weights = weight_of_token(sequences, aggregation, normalizer, values.size)
    loss = aggregate(terms, sequences, aggregation, normalizer)
    return loss, weights * grads, aggregate(clipped, sequences, "token-mean", None)


def moments_of(advantages: Array, sequences: Sequences) -> list[float]:
    valid = [float(advantages[t]) for tokens in sequences for t in tokens]
    return [float(len(valid)), math.fsum(valid), math.fsum(a * a for a in valid)]


def linear_logprobs(
    hidden: Array,
    weight: Array,
    targets: Sequence[int],
    bias: Array = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    valid: Sequence[bool] | None = None,
    support: Sequence[Sequence[int]] | None = None,
) -> tuple[Array, Array]:
    """`hidden [N, D]`, `weight [V, D]` -> log-probability of the target and entropy, in nats, each `[N]`.

    Over the tokens that `support` lists for each row, or all.
    """
    logprobs, entropies = np.zeros(hidden.shape[0]), np.zeros(hidden.shape[0])
    for n in range(hidden.shape[0]):
        if valid is not None and not valid[n]:
            continue
        logits = {}
        for v in range(weight.shape[0]) if support is None else support[n]:
            logit = math.fsum(float(h) * float(w) for h, w in zip(hidden[n], weight[v], strict=True))
            logit += 0.0 if bias is None else float(bias[v])
            if softcap is not None:
                logit = softcap * math.tanh(logit / softcap)
            logits[v] = logit / temperature
        top = max(logits.values())
        log_normalizer = top + math.log(math.fsum(math.exp(x - top) for x in logits.values()))
        logprobs[n] = logits[targets[n]] - log_normalizer
        entropies[n] = -math.fsum(math.exp(x - log_normalizer) * (x - log_normalizer) for x in logits.values())
    return logprobs, entropies


def group_advantages(
    rewards: Sequence[float] | None,
    groups: Sequence[int],
    token_rewards: Array | None,
    sequences: Sequences,
    size: int,
    baseline: str = "mean",
    scale: str = "group",
    gamma: float = 1.0,
    segment_ids: Sequence[int] | None = None,
    min_temperature: float | None = None,
) -> Array:
    """Advantages of `size` flat tokens: items of one kind are compared first, then laid on the tokens."""
    advantages = np.zeros(size)
    if rewards is not None:
        outcomes = [[float(reward)] if tokens else [] for reward, tokens in zip(rewards, sequences, strict=True)]
        for tokens, compared in zip(sequences, _compared(outcomes, groups, baseline, scale), strict=True):
            for t in tokens:
                advantages[t] += compared[0]
    if token_rewards is not None:
        segments = [_segments(tokens, segment_ids) for tokens in sequences]
        scores = [_min_form([float(token_rewards[s[-1]]) for s in row], min_temperature) for row in segments]
        for row, compared in zip(segments, _compared(scores, groups, baseline, scale), strict=True):
            for place, segment in enumerate(row):
                for t in segment:
                    advantages[t] += math.fsum(gamma**k * x for k, x in enumerate(compared[place:]))
    return advantages


def _segments(tokens: list[int], ids: Sequence[int] | None) -> list[list[int]]:
    if ids is None:
        return [[t] for t in tokens]
    return [list(run) for _, run in itertools.groupby(tokens, key=lambda t: int(ids[t]))]


def _min_form(scores: list[float], temperature: float | None) -> list[float]:
    if temperature is None or not scores:
        return scores
    if temperature == 0:
        least = scores.index(min(scores))
        return [score if place == least else 0.0 for place, score in enumerate(scores)]
    shares = [math.exp((min(scores) - score) / temperature) for score in scores]
    return [score * share / math.fsum(shares) for score, share in zip(scores, shares, strict=True)]


def _compared(items: list[list[float]], groups: Sequence[int], baseline: str, scale: str) -> list[list[float]]:
    """Each sequence's items less their baseline, over their scale."""

    def deviation(values: list[float]) -> float:
        if len(values) < 2:
            return 1.0
        mean = math.fsum(values) / len(values)
        return math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)) + 1e-6

    result = []
    for own, own_items in enumerate(items):
        mates = [other for other in range(len(items)) if groups[other] == groups[own]]
        everything = [x for other in mates for x in items[other]]
        others = [x for other in mates if other != own for x in items[other]]
        centre = 0.0
        if baseline != "none" and own_items:
            pool = others if baseline == "leave-one-out" and others else everything
            centre = math.fsum(pool) / len(pool)
        by = {"none": 1.0, "group": deviation(everything), "batch": deviation([x for row in items for x in row])}[scale]
        result.append([(x - centre) / by for x in own_items])
    return result
