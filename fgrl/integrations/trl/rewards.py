"""Reward functions of TRL that may return one number a completion or one a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, PreTrainedModel
from trl.trainer.utils import is_async_callable

from fgrl.models import TokenRewardModel

RewardFunction: TypeAlias = Callable[..., Any]

# What a function returned: nothing but None, one number a completion, one a token.
NOTHING, OUTCOME, TOKENS = 0, 1, 2


class TokenRewards:
    """What one reward function returned for the completions of this process.

    Called in the function's place, it gives TRL one number a completion: the sums of the token rewards.
    """

    def __init__(self, name: str, completion_ids: Sequence[Sequence[int]]) -> None:
        self.name = name
        self.lengths = [len(ids) for ids in completion_ids]
        self.tokens: list[Tensor | None] = [None] * len(self.lengths)
        self.kind = NOTHING

    def around(self, function: RewardFunction) -> RewardFunction:
        """`function` with its token rewards kept here; asynchronous if it is."""
        if is_async_callable(function):

            async def called_async(**kwargs: Any) -> list[Any]:
                return self.totals(await function(**kwargs))

            return called_async

        def called(**kwargs: Any) -> list[Any]:
            return self.totals(function(**kwargs))

        return called

    def totals(self, returned: Sequence[Any]) -> list[Any]:
        """Each completion's number: the one returned, or the sum of its token rewards.

        Raises:
            ValueError: token rewards that are not one finite number for each token of their completion; or lists for
                some completions and numbers for others.
        """
        totals: list[Any] = []
        for index, reward in enumerate(returned):
            values = None if reward is None else self._values(reward, index)
            if values is None:
                totals.append(None)
                continue
            kind = TOKENS if values.ndim else OUTCOME
            if self.kind not in (NOTHING, kind):
                raise ValueError(
                    f"reward function {self.name!r} returned {('', 'one number', 'a list')[kind]} for completion "
                    f"{index} and the other kind before; it must return one kind for all completions, or None"
                )
            self.kind = kind
            if kind == OUTCOME:
                totals.append(reward)
                continue
            if index < len(self.lengths):  # TRL says so if there are more results than completions
                self._check(values, index)
                self.tokens[index] = values
            totals.append(values.sum().item())
        return totals

    def _values(self, reward: Any, index: int) -> Tensor:
        try:
            values = torch.as_tensor(reward, dtype=torch.float32).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            values = None
        if values is None or values.ndim > 1:
            raise ValueError(
                f"reward function {self.name!r} returned {reward!r:.80} for completion {index}; it must be one number, "
                "a list of one number a token, or None"
            )
        return values

    def _check(self, values: Tensor, index: int) -> None:
        if len(values) != self.lengths[index]:
            raise ValueError(
                f"reward function {self.name!r} returned {len(values)} token rewards for completion {index}; they must "
                f"be {self.lengths[index]}, one for each of its completion_ids"
            )
        if not values.isfinite().all():
            raise ValueError(
                f"reward function {self.name!r} returned a token reward for completion {index} that is not finite; "
                "all must be"
            )


def as_token_reward_model(reward: Any) -> Any:
    """A token classifier of one label, or the path of one, as a `TokenRewardModel`; anything else as it is."""
    if isinstance(reward, str):
        architectures = AutoConfig.from_pretrained(reward).architectures or [""]
        return TokenRewardModel.from_pretrained(reward, trainable=False) if _is_token(architectures[0]) else reward
    is_model = isinstance(reward, PreTrainedModel) and _is_token(type(reward).__name__)
    return TokenRewardModel(reward) if is_model else reward


def _is_token(class_name: str) -> bool:
    return class_name.endswith("ForTokenClassification")


@torch.no_grad()
def model_rewards(
    model: TokenRewardModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    batch_size: int,
) -> list[Tensor]:
    """For each completion its token rewards under `model`, `batch_size` sequences at a time."""
    rewards: list[Tensor] = []
    for start in range(0, len(prompt_ids), batch_size):
        prompts, completions = (ids[start : start + batch_size] for ids in (prompt_ids, completion_ids))
        rows = [torch.tensor([*prompt, *completion]) for prompt, completion in zip(prompts, completions, strict=True)]
        input_ids = pad_sequence(rows, batch_first=True).to(model.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
        scores = model(input_ids=input_ids, attention_mask=mask).cpu()
        rewards += [
            row[len(prompt) : len(prompt) + len(completion)]
            for row, prompt, completion in zip(scores, prompts, completions, strict=True)
        ]
    return rewards
