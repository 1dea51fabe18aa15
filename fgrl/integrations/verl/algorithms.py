"""verl's advantages and losses, with its signatures, by fgrl's ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgrl import ops

# fgrl's name of verl's `loss_agg_mode`, and the entry of verl's global batch information that is its denominator.
_AGGREGATIONS: dict[str, tuple[Any, str | None]] = {
    "token-mean": ("token-mean", "batch_num_tokens"),
    "token-sum": ("token-sum", None),
    "seq-mean-token-sum": ("seq-mean-token-sum", "global_batch_size"),
    "seq-mean-token-sum-norm": ("seq-mean-token-sum", "global_batch_size"),
    "seq-mean-token-mean": ("seq-mean-token-mean", "global_batch_size"),
}


@torch.no_grad()
def gae(
    token_level_rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """`compute_gae_advantage_return`: whitened advantages and plain returns, both 0 where the mask is.

    Args:
        token_level_rewards: `[B, T]`.
        values: `[B, T]`.
        response_mask: `[B, T]`, 0/1 of any dtype; may have holes (tool output).
    """
    advantages, returns = ops.gae(token_level_rewards, values, response_mask, gamma=float(gamma), lam=float(lam))
    return ops.whiten(advantages, response_mask), returns


def policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The policy loss "fgrl": "vanilla" (clipped, with dual clip), with the metrics of that.

    Args:
        old_log_prob, log_prob, advantages, response_mask: `[B, T]`.
        loss_agg_mode: any of verl's.
        config: verl's `ActorConfig`: `clip_ratio`, `clip_ratio_low`, `clip_ratio_high`, `clip_ratio_c` and
            `global_batch_info`.
        rollout_is_weights: `[B, T]`, not negative, or None.

    Raises:
        ValueError: an option outside its range; `dp_size` above 1 without the count of the global batch.
    """
    if config is None:
        raise ValueError("config is None; it must be verl's ActorConfig")
    aggregation, normalizer, factor = _aggregate(loss_agg_mode, response_mask, **config.global_batch_info)
    low, high = (
        config.clip_ratio if bound is None else bound for bound in (config.clip_ratio_low, config.clip_ratio_high)
    )
    if rollout_is_weights is not None:
        # For a weight w >= 0, w times the loss of A is the loss of w A: every part of it is proportional to A.
        advantages = advantages * rollout_is_weights
    options = ops.PPOLossConfig(
        clip_low=low, clip_high=high, dual_clip=config.get("clip_ratio_c", 3.0), aggregation=aggregation
    )
    loss, stats = ops.ppo_loss(log_prob, old_log_prob, advantages, response_mask, normalizer=normalizer, config=options)
    names = {
        "actor/pg_clipfrac": "clip_fraction",
        "actor/ppo_kl": "approx_kl",
        "actor/pg_clipfrac_lower": "clip_fraction_lower",
    }
    numbers = torch.stack([stats[name] for name in names.values()]).tolist()  # one transfer
    return loss * factor, dict(zip(names, numbers, strict=True))


def value_loss(
    vpreds: Tensor,
    returns: Tensor,
    values: Tensor,
    response_mask: Tensor,
    cliprange_value: float,
    loss_agg_mode: str = "token-mean",
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`compute_value_loss`: the clipped value loss and the fraction of clipped tokens, both 0-d.

    Raises:
        ValueError: an option outside its range; `dp_size` above 1 without the count of the global batch.
    """
    aggregation, normalizer, factor = _aggregate(
        loss_agg_mode, response_mask, dp_size, batch_num_tokens, global_batch_size, loss_scale_factor
    )
    loss, stats = ops.value_loss(
        vpreds,
        values,
        returns,
        response_mask,
        clip=float(cliprange_value),
        normalizer=normalizer,
        aggregation=aggregation,
    )
    return loss * factor, stats["clip_fraction"]


def outcome_and_token_advantages(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: np.ndarray | None = None,
    config: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """The advantage estimator "fgrl": outcomes compared as in GRPO, plus token rewards compared within the group.

    The reward at a response's last valid token is its outcome, those at the tokens before it are its token rewards.
    Without token rewards this is verl's "grpo".

    Args:
        token_level_rewards: `[B, T]`.
        response_mask: `[B, T]`.
        index: `[B]`, equal where the prompt is.
        config: verl's `algorithm`: `gamma`, and `norm_adv_by_std_in_grpo` for the division by the standard deviation.

    Returns:
        Advantages `[B, T]`, twice: verl has a place for returns, which nothing reads without a critic.
    """
    valid = response_mask.bool()
    positions = torch.arange(valid.shape[1], device=valid.device)
    last = torch.where(valid, positions, -1).amax(dim=1, keepdim=True).clamp(min=0)
    outcomes = token_level_rewards.gather(1, last).squeeze(1)
    before_last = torch.where(positions == last, 0.0, token_level_rewards)
    has_token_rewards = bool((before_last * valid).any())
    return _group_advantages(outcomes, before_last if has_token_rewards else None, response_mask, index, config)


def token_advantages(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: np.ndarray | None = None,
    config: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """The advantage estimator "fgrl_tokens": every reward is a token reward; see `outcome_and_token_advantages`."""
    return _group_advantages(None, token_level_rewards, response_mask, index, config)


def _group_advantages(
    outcomes: Tensor | None, token_rewards: Tensor | None, mask: Tensor, index: np.ndarray | None, config: Any
) -> tuple[Tensor, Tensor]:
    if index is None:
        raise ValueError("index is None; it must have one entry a response, equal where the prompt is (verl's uid)")
    options = config if config is not None else {}
    _, groups = np.unique(np.asarray([str(entry) for entry in index]), return_inverse=True)
    advantages = ops.group_advantages(
        outcomes,
        torch.as_tensor(groups, device=mask.device),
        mask,
        token_rewards=token_rewards,
        scale="group" if options.get("norm_adv_by_std_in_grpo", True) else "none",
        gamma=float(options.get("gamma", 1.0)),
    )
    return advantages, advantages


def _aggregate(
    mode: str,
    mask: Tensor,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: int | None = None,
) -> tuple[Any, Any, float]:
    """Aggregation and normalizer of fgrl, and the factor with which they give verl's `agg_loss`.

    FSDP averages gradients over the `dp_size` processes, so each process's part of the global mean is multiplied by it.
    """
    if mode not in _AGGREGATIONS:
        raise ValueError(f"loss_agg_mode is {mode!r}; it must be one of {', '.join(_AGGREGATIONS)}")
    aggregation, name = _AGGREGATIONS[mode]
    counts = {"batch_num_tokens": batch_num_tokens, "global_batch_size": global_batch_size}
    normalizer = None if name is None else counts[name]
    if name is not None and normalizer is None and dp_size > 1:
        raise ValueError(f"{name} is None; it must be given where dp_size is {dp_size} and loss_agg_mode {mode!r}")
    factor = float(dp_size)
    if mode == "seq-mean-token-sum-norm":
        factor /= mask.shape[-1] if loss_scale_factor is None else loss_scale_factor
    return aggregation, normalizer, factor
