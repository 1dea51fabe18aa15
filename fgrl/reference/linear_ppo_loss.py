"""The PPO loss straight from hidden states and the LM head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fgrl.reference._common import as_mask, gather_shards, rounds_operands
from fgrl.reference.linear_logprobs import entropies, target_logprobs, valid_log_softmax
from fgrl.reference.ppo_loss import ppo_loss
from fgrl.types import LinearPPOLoss, PPOLossConfig


@rounds_operands("hidden", "weight")
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
    process_group: Any = None,
    chunk_tokens: int | None = None,
) -> LinearPPOLoss:
    """See `fgrl.ops.linear_ppo_loss`: `linear_logprobs` with its entropy, then `ppo_loss`.

    An entropy that is only reported has no graph, which would keep two more `[M, V]` for the backward pass.
    """
    weight = gather_shards(weight, process_group)
    bias = None if bias is None else gather_shards(bias, process_group)
    valid = as_mask(mask, targets)
    log_softmax = valid_log_softmax(hidden, weight, valid, bias=bias, temperature=temperature, softcap=softcap)
    logprobs = target_logprobs(log_softmax, targets, valid)
    entropy = entropies(log_softmax if config.entropy_coef else log_softmax.detach(), valid)
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
