"""From token rewards and log-probabilities to advantages: reward shaping, KL penalty and GAE in one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fgrl.reference._common import Rows, as_mask, select
from fgrl.reference.gae import gae
from fgrl.reference.ppo_loss import kl_value
from fgrl.types import KLEstimator, TokenAdvantages, compute_dtype


def token_advantages(
    token_rewards: Tensor | None,
    values: Tensor,
    logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    mask: Tensor | None = None,
    *,
    sequence_rewards: Tensor | None = None,
    reward_scale: float = 1.0,
    reward_clip: float | Sequence[float] | None = None,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k1",
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> TokenAdvantages:
    """See `fgrl.ops.token_advantages`.

    R_t = reward_scale * clip(r_t) - kl_coef * KL_t,   plus the sequence's score on its last valid token
    (advantages, returns) = gae(R, values)
    """
    dtype = compute_dtype(token_rewards, values, logprobs, ref_logprobs, sequence_rewards, bootstrap)
    valid = as_mask(mask, values)
    rewards = torch.zeros(values.shape, dtype=dtype, device=values.device)
    kl = rewards
    if token_rewards is not None:
        rewards = select(token_rewards, valid, dtype)
        if reward_clip is not None:
            low, high = reward_clip if isinstance(reward_clip, Sequence) else (-reward_clip, reward_clip)
            rewards = rewards.clamp(low, high)
        rewards = reward_scale * rewards
    if logprobs is not None and ref_logprobs is not None:
        kl = kl_value(select(logprobs, valid, dtype), select(ref_logprobs, valid, dtype), kl_estimator)
        if kl_coef:  # k3 can overflow, and 0 * inf is NaN
            rewards = rewards - kl_coef * kl
    if sequence_rewards is not None:
        rows = Rows(cu_seqlens)
        is_last = rows.join(_last_valid(rows.split(valid)))
        spread = rows.join(sequence_rewards.to(dtype)[:, None].expand(rows.split(valid).shape))
        rewards = rewards + select(spread, is_last, dtype)
    advantages, returns = gae(
        rewards, values.to(dtype), valid, gamma=gamma, lam=lam, bootstrap=bootstrap, cu_seqlens=cu_seqlens
    )
    return TokenAdvantages(advantages, returns, kl, advantage_moments(advantages, valid))


def advantage_moments(advantages: Tensor, mask: Tensor | None) -> Tensor:
    """float64 `[3]`: count, sum and sum of squares of the valid advantages."""
    valid = as_mask(mask, advantages)
    selected = select(advantages, valid, torch.float64)
    return torch.stack([valid.sum().to(torch.float64), selected.sum(), selected.square().sum()])


def _last_valid(masks: Tensor) -> Tensor:
    """`[B, T]`, true at the last true position of each row of a bool mask."""
    remaining = masks.flip(1).cumsum(1).flip(1)
    return masks & (remaining == 1)
