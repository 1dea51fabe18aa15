"""The clipped value loss."""

from __future__ import annotations

import torch
from torch import Tensor

from fgrl.reference._common import as_mask, select
from fgrl.reference.ppo_loss import aggregate_tokens
from fgrl.types import Aggregation, ValueLoss, compute_dtype


def value_loss(
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor,
    mask: Tensor | None = None,
    *,
    clip: float | None = 0.2,
    normalizer: float | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    aggregation: Aggregation = "token-mean",
) -> ValueLoss:
    """See `fgrl.ops.value_loss`.

    clipped = clip(V, V_old - clip, V_old + clip)
    token   = max((V - R)^2, (clipped - R)^2) / 2
    """
    dtype = compute_dtype(values, old_values, returns)
    valid = as_mask(mask, values)
    value, target = select(values, valid, dtype), select(returns.detach(), valid, dtype)
    error = (value - target).square()
    is_clipped = torch.zeros_like(valid)
    if clip is not None and old_values is not None:
        old = select(old_values.detach(), valid, dtype)
        clipped_error = (torch.maximum(torch.minimum(value, old + clip), old - clip) - target).square()
        is_clipped = clipped_error > error
        error = torch.where(is_clipped, clipped_error, error)

    def mean(tokens: Tensor) -> Tensor:
        return aggregate_tokens(tokens.detach(), valid, "token-mean", None, None)

    loss = aggregate_tokens(error / 2, valid, aggregation, normalizer, cu_seqlens)
    stats = {
        "value_loss": loss.detach(),
        "clip_fraction": mean(is_clipped.to(dtype)),
        "value_mean": mean(value),
        "return_mean": mean(target),
        "mean_squared_error": mean((value - target).square()),
        "tokens": valid.sum().to(dtype),
    }
    return ValueLoss(loss, stats)
