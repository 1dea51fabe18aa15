"""The reward head: one dot product per token, with the model's final RMSNorm fused in front on request."""

from __future__ import annotations

import torch
from torch import Tensor

from fgrl.types import compute_dtype


def token_reward_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
) -> Tensor:
    """See `fgrl.ops.token_reward_head`.

    h'  = h / sqrt(mean(h^2) + eps) * norm_weight        (only with norm_weight)
    r_k = w_k . h' + b_k
    """
    dtype = compute_dtype(hidden, weight, bias, norm_weight)
    states = hidden.to(dtype)
    if norm_weight is not None:
        states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + norm_eps) * norm_weight.to(dtype)
    rewards = states @ weight.to(dtype).T if weight.ndim == 2 else states @ weight.to(dtype)
    if bias is not None:
        rewards = rewards + (bias if weight.ndim == 2 else bias.reshape(())).to(dtype)
    return rewards
