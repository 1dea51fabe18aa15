"""Advantage whitening from moments, so that one small all-reduce whitens across any group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fgrl.reference._common import as_mask, select
from fgrl.reference.token_advantages import advantage_moments
from fgrl.types import compute_dtype

_VARIANCE_FLOOR = 1e-8


def whiten(
    advantages: Tensor,
    mask: Tensor | None,
    moments: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """See `fgrl.ops.whiten`.

    (A_t - mean) / sqrt(var + 1e-8),   var with Bessel's correction, 0 for fewer than two tokens
    """
    valid = as_mask(mask, advantages)
    selected = select(advantages, valid, torch.float64)
    if moments is None:
        moments = advantage_moments(advantages, valid)
    if group is not None:
        moments = moments.clone()
        dist.all_reduce(moments, group=group)
    count, total, squares = moments.to(torch.float64).unbind()
    mean = total / count.clamp(min=1)
    variance = ((squares - total * mean) / (count - 1).clamp(min=1)).clamp(min=0)
    return select((selected - mean) * torch.rsqrt(variance + _VARIANCE_FLOOR), valid, compute_dtype(advantages))
