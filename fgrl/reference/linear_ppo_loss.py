"""The PPO loss straight from hidden states and the LM head."""

from __future__ import annotations

from torch import Tensor

from fgrl.reference.linear_logprobs import linear_logprobs
from fgrl.reference.ppo_loss import ppo_loss
from fgrl.types import LinearPPOLoss, PPOLossConfig


def linear_ppo_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ref_logprobs: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    config: PPOLossConfig = PPOLossConfig(),
) -> LinearPPOLoss:
    """See `fgrl.ops.linear_ppo_loss`: `linear_logprobs` with its entropy, then `ppo_loss`."""
    logprobs, entropy = linear_logprobs(
        hidden,
        weight,
        targets,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        mask=mask,
        return_entropy=True,
    )
    loss, stats = ppo_loss(
        logprobs,
        old_logprobs,
        advantages,
        mask,
        ref_logprobs=ref_logprobs,
        entropy=entropy,
        rollout_logprobs=rollout_logprobs,
        normalizer=normalizer,
        cu_seqlens=cu_seqlens,
        config=config,
    )
    return LinearPPOLoss(loss, stats, logprobs.detach())
