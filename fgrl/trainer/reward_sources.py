"""Reward sources of PPO: token reward models and Python functions, added up per token and per sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fgrl.trainer.rollout import Completions

RewardFunction = Callable[..., Sequence[Any]]


class Scores(NamedTuple):
    """`token [B, T]` and `sequence [B]` rewards, fp32."""

    token: Tensor
    sequence: Tensor

    def total(self, mask: Tensor) -> Tensor:
        """`[B]`: all that a sequence earned."""
        return torch.where(mask, self.token, 0.0).sum(1) + self.sequence


@dataclass
class RewardSource:
    """One reward model or function with its name and weight.

    A model maps `(input_ids [B, L], attention_mask [B, L])` to rewards `[B, L]`, as `TokenRewardModel` does, or to an
    output with `logits [B, L, 1]`, as a plain token-classification model does. A function is called as TRL calls its
    reward functions, `fn(prompts=, completions=, completion_ids=, **columns)`, and returns one number a completion,
    or one list a completion with a number for each of its tokens.
    """

    source: nn.Module | RewardFunction
    weight: float = 1.0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        if not callable(self.source):
            raise ValueError(
                f"reward_model is a {type(self.source).__name__}; it must be a token reward model, a function, or a "
                "list of these"
            )
        self.name = getattr(self.source, "__name__", type(self.source).__name__)

    def __call__(self, completions: Completions, rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> Scores:
        """Weighted scores of the completions.

        Raises:
            ValueError: a function returned the wrong number of rewards.
        """
        if isinstance(self.source, nn.Module):
            scores = self._run_model(completions)
        else:
            scores = self._run_function(completions, rows, texts)
        return Scores(self.weight * scores.token, self.weight * scores.sequence)

    def _run_model(self, completions: Completions) -> Scores:
        assert isinstance(self.source, nn.Module)
        rewards = self.source(input_ids=completions.input_ids, attention_mask=completions.attention_mask)
        if hasattr(rewards, "logits"):
            rewards = rewards.logits.squeeze(-1)
        token = rewards[:, -completions.length :].float()
        return Scores(token, token.new_zeros(len(token)))

    def _run_function(self, completions: Completions, rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> Scores:
        mask = completions.completion_mask
        lengths = mask.sum(1).tolist()
        completion_ids = [
            ids[:length] for ids, length in zip(completions.completion_ids.tolist(), lengths, strict=True)
        ]
        columns = {name: [row.get(name) for row in rows] for name in rows[0] if name not in ("prompt", "prompt_ids")}
        rewards = self.source(
            prompts=[row.get("prompt") for row in rows],
            completions=list(texts),
            completion_ids=completion_ids,
            **columns,
        )
        if len(rewards) != len(rows):
            raise ValueError(
                f"{self.name} returned {len(rewards)} rewards; it must return {len(rows)}, one a completion"
            )
        token = torch.zeros(mask.shape, device=mask.device)
        sequence = torch.zeros(len(rows), device=mask.device)
        for index, (reward, length) in enumerate(zip(rewards, lengths, strict=True)):
            values = torch.as_tensor(reward, dtype=torch.float32)
            if values.ndim == 0:
                sequence[index] = values
            elif values.shape == (length,):
                token[index, :length] = values
            else:
                raise ValueError(
                    f"{self.name} returned rewards of shape {list(values.shape)} for a completion of {length} tokens; "
                    f"it must return a number or {length} numbers"
                )
        return Scores(token, sequence)


def reward_sources(reward_model: Any, weights: Sequence[float] | None) -> list[RewardSource]:
    """The sources in `reward_model`: one, or a list, with their weights.

    Raises:
        ValueError: no source, something that is none, or a number of weights that does not fit.
    """
    sources = list(reward_model) if isinstance(reward_model, list | tuple) else [reward_model]
    if not sources or sources[0] is None:
        raise ValueError("reward_model is missing; it must be a token reward model, a function, or a list of these")
    factors = [1.0] * len(sources) if weights is None else list(weights)
    if len(factors) != len(sources):
        raise ValueError(f"reward_weights has {len(factors)} entries; it must have {len(sources)}, one a reward source")
    return [RewardSource(source, factor) for source, factor in zip(sources, factors, strict=True)]


def check_same_vocabulary(policy_tokenizer: Any, reward_tokenizer: Any) -> None:
    """Two tokenizers may be different objects, but token ids must mean the same to both.

    Raises:
        ValueError: a token has another id, or none, in the other vocabulary; the sentence names one.
    """
    ours, theirs = policy_tokenizer.get_vocab(), reward_tokenizer.get_vocab()
    if ours == theirs:
        return
    token = min((token for token in {**ours, **theirs} if ours.get(token) != theirs.get(token)), key=str)
    raise ValueError(
        f"the reward model's tokenizer has another vocabulary than the policy's: token {token!r} is "
        f"{_id_of(token, theirs)} there and {_id_of(token, ours)} here; token rewards need the same ids"
    )


def _id_of(token: str, vocabulary: dict[str, int]) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "absent"
