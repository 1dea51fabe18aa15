"""The edited-token Bradley-Terry loss of the token reward model."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from fgrl.reference._common import as_mask, select
from fgrl.types import EditPreferenceLoss, compute_dtype


def edit_preference_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    chosen_edits: Tensor,
    rejected_edits: Tensor,
    *,
    chosen_mask: Tensor | None = None,
    rejected_mask: Tensor | None = None,
    reduction: Literal["sum", "mean"] = "sum",
    unchanged_weight: float = 0.0,
    margin: float = 0.0,
) -> EditPreferenceLoss:
    """See `fgrl.ops.edit_preference_loss`.

    With `U` the edited tokens of a side (under its mask) and `K` the kept ones, per pair:

        S       = sum of r_t over U     (or their mean; 0 for an empty set)
        penalty = mean of r_t^2 over K of both sides          (0 for an empty set)
        L       = -log sigmoid(S_chosen - S_rejected - margin) + unchanged_weight * penalty
    """
    dtype = compute_dtype(chosen_rewards, rejected_rewards)
    sides = []
    for rewards, edits, mask in (
        (chosen_rewards, chosen_edits, chosen_mask),
        (rejected_rewards, rejected_edits, rejected_mask),
    ):
        valid = as_mask(mask, rewards)
        edited = as_mask(edits, rewards) & valid
        kept = valid & ~edited
        score = select(rewards, edited, dtype).sum(1)  # [B]
        if reduction == "mean":
            score = score / edited.sum(1).clamp(min=1)
        sides.append((score, select(rewards, kept, dtype).square().sum(1), kept.sum(1)))
    (chosen, chosen_squares, chosen_kept), (rejected, rejected_squares, rejected_kept) = sides
    margins = chosen - rejected
    losses = -F.logsigmoid(margins - margin)
    if unchanged_weight:
        squares = chosen_squares + rejected_squares
        losses = losses + unchanged_weight * squares / (chosen_kept + rejected_kept).clamp(min=1)
    return EditPreferenceLoss(losses.sum() / max(len(losses), 1), margins.detach())
