"""A rollout: prompts, sampled completions, and everything PPO needs to know about each token of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from fgrl.models.head import hidden_states_and_head
from fgrl.ops import linear_logprobs


@dataclass(frozen=True)
class Completions:
    """Prompts `[B, P]`, padded on the left, and completions `[B, T]`, padded on the right, as one `[B, P + T]`."""

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor  # [B, T], true up to and including the end-of-sequence token
    finished: Tensor  # [B], true where there is an end-of-sequence token

    @property
    def length(self) -> int:
        """T, the length of the longest completion."""
        return self.completion_mask.shape[1]

    @property
    def completion_ids(self) -> Tensor:
        """`[B, T]`."""
        return self.input_ids[:, -self.length :]

    def rows(self, start: int, stop: int) -> Completions:
        """Sequences `start` to `stop`."""
        return Completions(**{item.name: getattr(self, item.name)[start:stop] for item in fields(self)})


@dataclass(frozen=True)
class Rollout:
    """Completions with their log-probabilities, values, advantages and returns, each `[B, T]`."""

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def select(self, rows: Tensor) -> Rollout:
        """The sequences whose numbers are in `rows`."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        selected: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values}
        return Rollout(**selected)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    eos_token_ids: Sequence[int],
    max_new_tokens: int,
    **generation_kwargs: Any,
) -> Completions:
    """Sample one completion a prompt with the model's own `generate`.

    Raises:
        ValueError: a prompt without a token.
    """
    if not all(len(prompt) for prompt in prompt_ids):
        raise ValueError("a prompt is empty; each needs at least one token (a BOS token will do)")
    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompt_ids)
    padded = [[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompt_ids]
    real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompt_ids]
    prompts = torch.tensor(padded, device=device)
    prompt_mask = torch.tensor(real, device=device)
    was_training = model.training
    model.eval()
    try:
        sequences = model.generate(  # type: ignore[operator]
            input_ids=prompts,
            attention_mask=prompt_mask,
            do_sample=True,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_token_id,
            eos_token_id=list(eos_token_ids) or None,
            **generation_kwargs,
        )
    finally:
        model.train(was_training)
    completions = sequences[:, longest:]
    is_eos = torch.isin(completions, torch.tensor(list(eos_token_ids), device=device, dtype=completions.dtype))
    ended_before = is_eos.cumsum(1) - is_eos.long() > 0
    completion_mask = ~ended_before
    return Completions(
        input_ids=torch.cat([prompts, completions.masked_fill(ended_before, pad_token_id)], dim=1),
        attention_mask=torch.cat([prompt_mask, completion_mask.long()], dim=1),
        completion_mask=completion_mask,
        finished=is_eos.any(1),
    )


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
