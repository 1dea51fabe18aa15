"""A rollout: completions and everything PPO needs to know about each token of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from fgrl.models.head import hidden_states_and_head
from fgrl.ops import linear_logprobs, whiten
from fgrl.trainer.sampling import Completions


@dataclass(frozen=True)
class Rollout:
    """Prompts and completions `[B, P + T]`, and of the completions `[B, T]` what PPO trains on."""

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    moments: Tensor  # float64 [3] of the advantages, for whitening

    def whitened(self, group: dist.ProcessGroup | None) -> Rollout:
        """The rollout with advantages of mean 0 and variance 1 over `group`."""
        advantages = whiten(self.advantages, self.completion_mask, self.moments, group=group)
        return replace(self, advantages=advantages)

    def select(self, rows: Tensor) -> Rollout:
        """The sequences whose numbers are in `rows`; `moments` stay those of the whole."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self) if item.name != "moments")
        selected: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values}
        return replace(self, **selected)


def completion_logprobs(model: nn.Module, completions: Completions, temperature: float) -> Tensor:
    """`[B, T]` fp32: log-probability of each token of the completions, 0 past their end."""
    states = hidden_states_and_head(model, completions.input_ids, completions.attention_mask)
    logprobs = linear_logprobs(
        before_tokens(states.hidden, completions.length),
        states.weight,
        completions.completion_ids,
        bias=states.bias,
        softcap=states.softcap,
        temperature=temperature,
        mask=completions.completion_mask,
    )
    assert isinstance(logprobs, Tensor)
    return logprobs


def before_tokens(per_position: Tensor, length: int) -> Tensor:
    """Of `[B, P + T, ...]`, the entries at the positions *before* each of the last `length` tokens: `[B, T, ...]`."""
    return per_position[:, -length - 1 : -1]
