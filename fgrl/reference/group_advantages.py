"""Advantages within groups of responses to one prompt: no critic, a baseline from the siblings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fgrl.reference._common import Rows, as_mask, select
from fgrl.types import GroupBaseline, GroupScale, compute_dtype

_SCALE_FLOOR = 1e-6


def group_advantages(
    rewards: Tensor | None,
    groups: Tensor,
    mask: Tensor | None = None,
    *,
    token_rewards: Tensor | None = None,
    baseline: GroupBaseline = "mean",
    scale: GroupScale = "group",
    gamma: float = 1.0,
    segment_ids: Tensor | None = None,
    min_temperature: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """See `fgrl.ops.group_advantages`.

    With x_i an outcome of the group, or a score of one of its tokens or segments:

        x'_i = (x_i - baseline) / scale

        A_t  = x' of the sequence's outcome + G_t
        G_t  = x'_t + gamma * G_t'                               t' the next valid token
        G_t  = x'_s + gamma * G_s'  for every token of segment s   s' the next segment

    Statistics are float64. Memory is quadratic in the number of sequences.
    """
    like = mask if token_rewards is None else token_rewards
    assert like is not None
    dtype = compute_dtype(rewards, token_rewards)
    rows = Rows(cu_seqlens)
    masks = rows.split(as_mask(mask, like))  # [B, T]
    same_group = groups[:, None] == groups  # [B, B]
    advantages = torch.zeros(masks.shape, dtype=dtype, device=like.device)
    if rewards is not None:
        outcomes = _normalized(rewards[:, None], masks.any(1, keepdim=True), same_group, baseline, scale)
        advantages = advantages + outcomes.to(dtype)
    if token_rewards is not None and masks.numel():
        ends = masks if segment_ids is None else _segment_ends(masks, rows.split(segment_ids))
        scores = rows.split(token_rewards)
        if min_temperature is not None:
            scores = _min_form(scores, ends, min_temperature)
        items = _normalized(scores, ends, same_group, baseline, scale).to(dtype)
        advantages = advantages + _returns_to_go(items, ends, gamma)
    return rows.join(select(advantages, masks, dtype))


def _normalized(items: Tensor, counted: Tensor, same_group: Tensor, baseline: str, scale: str) -> Tensor:
    """`items [B, K]` less their baseline, over their scale, in float64; 0 where they are not `counted`."""
    items = select(items, counted, torch.float64)
    counts, totals = counted.sum(1).to(torch.float64), items.sum(1)
    sizes, group_totals = _over_group(counts, same_group), _over_group(totals, same_group)
    means = group_totals / sizes.clamp(min=1)
    centres = means
    if baseline == "leave-one-out":
        others = sizes - counts
        centres = torch.where(others > 0, (group_totals - totals) / others.clamp(min=1), means)
    if baseline != "none":
        centred = select(items - centres[:, None], counted, torch.float64)
    else:
        centred = items
    if scale == "none":
        return centred
    if scale == "batch":
        sizes, means = counts.sum().expand_as(counts), (totals.sum() / counts.sum().clamp(min=1)).expand_as(counts)
    squares = select(items - means[:, None], counted, torch.float64).square().sum(1)
    squares = squares.sum().expand_as(squares) if scale == "batch" else _over_group(squares, same_group)
    variances = squares / (sizes - 1).clamp(min=1)
    # The root of 0 has no derivative; a NaN stays one.
    deviations = torch.where(variances == 0, 0.0, torch.where(variances == 0, 1.0, variances).sqrt())
    return centred / torch.where(sizes > 1, deviations + _SCALE_FLOOR, 1.0)[:, None]


def _over_group(values: Tensor, same_group: Tensor) -> Tensor:
    """`[B]`: for each sequence the sum of `values [B]` over its group."""
    return select(values.expand_as(same_group), same_group, values.dtype).sum(1)


def _segment_ends(masks: Tensor, ids: Tensor) -> Tensor:
    """`[B, T]`: the last valid token of each segment, a run of valid tokens of one id."""
    length = masks.shape[1]
    positions = torch.where(masks, torch.arange(length, device=masks.device), length)
    following = F.pad(positions[:, 1:], (0, 1), value=length).flip(1).cummin(1).values.flip(1)  # the next valid token
    next_ids = torch.cat([ids, ids[:, :1]], 1).gather(1, following)
    return masks & ((following == length) | (next_ids != ids))


def _min_form(scores: Tensor, counted: Tensor, temperature: float) -> Tensor:
    """Each score times its share of softmax(-score / temperature) over its sequence; at 0 the (first) least alone."""
    scores = select(scores, counted, torch.float64)
    if temperature == 0:
        least = torch.where(counted, scores, torch.inf).amin(1, keepdim=True)
        is_least = counted & ((scores == least) | scores.isnan())
        return select(scores, is_least & (is_least.cumsum(1) == 1), torch.float64)
    logits = torch.where(counted, -scores / temperature, -torch.inf)
    logits = torch.where(counted.any(1, keepdim=True), logits, 0.0)
    return select(scores * logits.softmax(1), counted, torch.float64)


def _returns_to_go(items: Tensor, ends: Tensor, gamma: float) -> Tensor:
    """`[B, T]`: the sum of each row's items from a token on, times gamma after each."""
    following = torch.zeros_like(items[:, 0])
    returns = []
    for t in reversed(range(items.shape[1])):
        following = torch.where(ends[:, t], items[:, t] + gamma * following, following)
        returns.append(following)
    return torch.stack(returns[::-1], dim=1)
