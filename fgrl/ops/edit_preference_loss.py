"""Public op: the loss of the token reward model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._aggregation import wants_gradient
from fgrl.ops._library import LIBRARY, differentiate_with_outputs, launch_with_triton
from fgrl.types import EditPreferenceLoss, compute_dtype

LIBRARY.define(
    "edit_preference_loss(Tensor chosen_rewards, Tensor rejected_rewards, Tensor chosen_edits, Tensor rejected_edits, "
    "Tensor? chosen_mask, Tensor? rejected_mask, bool mean, float unchanged_weight, float margin, "
    "bool grad_chosen_rewards, bool grad_rejected_rewards) "
    "-> (Tensor loss, Tensor margins, Tensor scale, Tensor chosen_rewards_grad, Tensor rejected_rewards_grad)"
)
launch_with_triton("edit_preference_loss", "edit_preference_loss")


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
    """Bradley-Terry loss on the edited tokens of pairs (original, minimally edited).

    `-log sigmoid(S_chosen - S_rejected - margin)`, where `S` sums the rewards of a side's edited tokens, averaged
    over pairs. Our reading of Xu et al., arXiv 2406.02756: the abstract fixes the pipeline, not the formula.

    Args:
        chosen_rewards: `[B, T1]`, rewards of the edited response, any floating dtype.
        rejected_rewards: `[B, T0]`, rewards of the original response.
        chosen_edits: `[B, T1]`, bool or 0/1: tokens that the edit inserted or substituted.
        rejected_edits: `[B, T0]`, bool or 0/1: tokens that the edit deleted or substituted.
        chosen_mask: `[B, T1]`, bool or 0/1: response tokens. Default: all. Edits outside it do not count.
        rejected_mask: `[B, T0]`, likewise.
        reduction: "sum" or "mean" over the edited tokens of a side; an empty set gives 0 either way.
        unchanged_weight: weight of a pair's mean squared reward over the kept tokens of both sides, at least 0. It pins
            kept tokens near 0, which makes the rewards usable as they are in PPO.
        margin: how far the chosen score has to be ahead.

    Returns:
        `EditPreferenceLoss(loss, margins)`: a 0-d loss, and `S_chosen - S_rejected` `[B]` without gradient.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, in one sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> rewards, edits = torch.tensor([[0.0, 3.0]]), torch.tensor([[0, 1]])
        >>> loss, margins = fgrl.ops.edit_preference_loss(rewards, -rewards, edits, edits)
        >>> loss.item(), margins
        (0.002475..., tensor([6.]))
    """
    for side, rewards, edits, mask in (
        ("chosen", chosen_rewards, chosen_edits, chosen_mask),
        ("rejected", rejected_rewards, rejected_edits, rejected_mask),
    ):
        _checks.check_float(f"{side}_rewards", rewards)
        if rewards.ndim != 2:
            raise ValueError(f"{side}_rewards has shape {list(rewards.shape)}; it must be [B, T]")
        _checks.check_shape(f"{side}_edits", edits, rewards.shape, f"{side}_rewards")
        _checks.check_mask(f"{side}_edits", edits, f"{side}_rewards", rewards)
        _checks.check_mask(f"{side}_mask", mask, f"{side}_rewards", rewards)
    if len(chosen_rewards) != len(rejected_rewards):
        raise ValueError(
            f"rejected_rewards has {len(rejected_rewards)} rows; it must have {len(chosen_rewards)} like chosen_rewards"
        )
    _checks.check_device("rejected_rewards", rejected_rewards, "chosen_rewards", chosen_rewards)
    _checks.check_choice("reduction", reduction, ("sum", "mean"))
    _checks.check_finite("margin", margin)
    _checks.check_finite("unchanged_weight", unchanged_weight)
    if unchanged_weight < 0:
        raise ValueError(f"unchanged_weight is {unchanged_weight}; it must be at least 0")
    if backend.resolve("edit_preference_loss", chosen_rewards.device) == "reference":
        return backend.reference("edit_preference_loss", chosen_rewards.device)(
            chosen_rewards,
            rejected_rewards,
            chosen_edits,
            rejected_edits,
            chosen_mask=chosen_mask,
            rejected_mask=rejected_mask,
            reduction=reduction,
            unchanged_weight=unchanged_weight,
            margin=margin,
        )
    loss, margins, *_ = torch.ops.fgrl.edit_preference_loss(
        chosen_rewards,
        rejected_rewards,
        chosen_edits,
        rejected_edits,
        chosen_mask,
        rejected_mask,
        reduction == "mean",
        float(unchanged_weight),
        float(margin),
        wants_gradient(chosen_rewards),
        wants_gradient(rejected_rewards),
    )
    return EditPreferenceLoss(loss, margins)


@torch.library.register_fake("fgrl::edit_preference_loss", lib=LIBRARY)
def _edit_preference_loss_fake(chosen_rewards: Tensor, rejected_rewards: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    dtype = compute_dtype(chosen_rewards, rejected_rewards)
    return (
        chosen_rewards.new_empty((), dtype=dtype),
        chosen_rewards.new_empty(chosen_rewards.shape[0], dtype=dtype),
        chosen_rewards.new_empty((), dtype=dtype),
        chosen_rewards.new_empty(chosen_rewards.shape if rest[-2] else 0, dtype=dtype),
        rejected_rewards.new_empty(rejected_rewards.shape if rest[-1] else 0, dtype=dtype),
    )


differentiate_with_outputs("edit_preference_loss", "chosen_rewards", "rejected_rewards")
