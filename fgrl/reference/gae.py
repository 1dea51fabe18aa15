"""Generalised advantage estimation, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from fgrl.reference._common import Rows, as_mask, select
from fgrl.types import GAE, compute_dtype


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> GAE:
    """See `fgrl.ops.gae`.

    For each valid token `t`, with `t'` the next *valid* token of its sequence:

        delta_t = r_t + gamma * V_t' - V_t
        A_t     = delta_t + gamma * lam * A_t'
        returns = A_t + V_t

    After the last valid token, `V_t'` is `bootstrap` and `A_t'` is 0 (Schulman et al., arXiv 1506.02438, eq. 16).
    """
    dtype = compute_dtype(rewards, values, bootstrap)
    rows = Rows(cu_seqlens)
    valid = as_mask(mask, rewards)
    masks = rows.split(valid)  # [B, T]
    reward_rows = rows.split(select(rewards, valid, dtype))
    value_rows = rows.split(select(values, valid, dtype))
    batch, length = masks.shape

    next_advantage = torch.zeros(batch, dtype=dtype, device=rewards.device)
    next_value = next_advantage if bootstrap is None else bootstrap.to(dtype)
    decay = gamma * (lam.to(dtype) if isinstance(lam, Tensor) else lam)
    advantages: list[Tensor] = []
    for t in reversed(range(length)):
        delta = reward_rows[:, t] + gamma * next_value - value_rows[:, t]
        advantage = delta + decay * next_advantage
        next_advantage = torch.where(masks[:, t], advantage, next_advantage)
        next_value = torch.where(masks[:, t], value_rows[:, t], next_value)
        advantages.append(select(advantage, masks[:, t], dtype))
    if not advantages:
        return GAE(rewards.to(dtype), rewards.to(dtype))
    stacked = torch.stack(advantages[::-1], dim=1)
    return GAE(rows.join(stacked), rows.join(stacked + value_rows))
