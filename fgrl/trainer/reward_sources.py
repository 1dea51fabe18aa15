"""Reward sources of PPO: token reward models and Python functions, added up per token and per sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fgrl.models import TokenRewardModel
from fgrl.trainer.sampling import Completions
from fgrl.trainer.teacher import TeacherReward

RewardFunction = Callable[..., Sequence[Any]]
_TAKEN = ("prompt", "prompt_ids", "prompts", "completions", "completion_ids", "trainer_state")


class Scores(NamedTuple):
    """`token [B, T]` and `sequence [B]` rewards, fp32."""

    token: Tensor
    sequence: Tensor

    def total(self, mask: Tensor) -> Tensor:
        """`[B]`: all that a sequence earned."""
        return torch.where(mask, self.token, 0.0).sum(1) + self.sequence


class ScoringContext(NamedTuple):
    """What reward functions are told besides the completions."""

    rows: Sequence[dict[str, Any]]  # of the data set, one a completion
    texts: Sequence[str]  # the completions, without special tokens
    state: Any  # the trainer's `TrainerState`
    batch_size: int  # sequences a forward pass of a model
    logprobs: Tensor  # [B, T], the policy's of the completions' tokens


@dataclass
class RewardSource:
    """One reward model or function with its name and weight.

    A model maps `(input_ids [B, L], attention_mask [B, L])` to rewards `[B, L]`, as `TokenRewardModel` does; a plain
    token-classification model of one label is wrapped in one. A `TeacherReward` compares the policy with a teacher. A
    function is called once a rollout, as TRL calls its
    reward functions: `fn(prompts=, completions=, completion_ids=, trainer_state=, **columns)`, where `completions` are
    texts, or messages where the prompt is messages. It returns for each completion one number, a list with a number for
    each of its tokens, or None where it has no opinion.
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
        if type(self.source).__name__.endswith("ForSequenceClassification"):
            raise ValueError(
                f"reward_model is a {type(self.source).__name__}; it must give a reward a token: wrap it in a function "
                "to use its score of the whole sequence"
            )
        if hasattr(self.source, "base_model_prefix"):
            self.source = TokenRewardModel(self.source)  # type: ignore[arg-type]
        self.name = getattr(self.source, "__name__", type(self.source).__name__)

    def __call__(self, completions: Completions, context: ScoringContext) -> Scores:
        """Weighted scores of the completions.

        Raises:
            ValueError: the wrong number of rewards, or one that is not finite.
        """
        if isinstance(self.source, TeacherReward):
            token = self.source(completions, context.logprobs, context.batch_size)
            scores = Scores(token, token.new_zeros(len(token)))
        elif isinstance(self.source, nn.Module):
            scores = self._run_model(self.source, completions, context.batch_size)
        else:
            scores = self._run_function(self.source, completions, context)
        self._check_finite(scores, completions.completion_mask)
        return Scores(self.weight * scores.token, self.weight * scores.sequence)

    def _run_model(self, model: nn.Module, completions: Completions, batch_size: int) -> Scores:
        parts = []
        for part in completions.parts(batch_size):
            rewards = model(input_ids=part.input_ids, attention_mask=part.attention_mask)
            if not isinstance(rewards, Tensor) or rewards.shape != part.input_ids.shape:
                got = list(rewards.shape) if isinstance(rewards, Tensor) else type(rewards).__name__
                raise ValueError(f"{self.name} returned {got}; it must return rewards {list(part.input_ids.shape)}")
            parts.append(rewards[:, -completions.length :].float())
        token = torch.cat(parts)
        return Scores(token, token.new_zeros(len(token)))

    def _run_function(self, function: RewardFunction, completions: Completions, context: ScoringContext) -> Scores:
        rows, completion_ids = context.rows, completions.as_lists()
        columns = {name: [row.get(name) for row in rows] for name in rows[0] if name not in _TAKEN}  # in all rows
        rewards = function(
            prompts=[row.get("prompt") for row in rows],
            completions=[_in_form_of(row.get("prompt"), text) for row, text in zip(rows, context.texts, strict=True)],
            completion_ids=completion_ids,
            trainer_state=context.state,
            **columns,
        )
        if not hasattr(rewards, "__len__") or len(rewards) != len(rows):
            got = f"{len(rewards)} rewards" if hasattr(rewards, "__len__") else f"a {type(rewards).__name__}"
            raise ValueError(f"{self.name} returned {got}; it must return {len(rows)} rewards, one a completion")
        token = torch.zeros(completions.completion_mask.shape)
        sequence = torch.zeros(len(rows))
        for index, (reward, ids) in enumerate(zip(rewards, completion_ids, strict=True)):
            values = torch.as_tensor(0.0 if reward is None else reward, dtype=torch.float32)
            if values.ndim == 0:
                sequence[index] = values
            elif values.shape == (len(ids),):
                token[index, : len(ids)] = values
            else:
                raise ValueError(
                    f"{self.name} returned rewards of shape {list(values.shape)} for a completion of {len(ids)} "
                    f"tokens; it must return a number or {len(ids)} numbers"
                )
        device = completions.completion_mask.device
        return Scores(token.to(device), sequence.to(device))

    def _check_finite(self, scores: Scores, mask: Tensor) -> None:
        bad = ~torch.where(mask, scores.token, 0.0).isfinite().all(1) | ~scores.sequence.isfinite()
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise ValueError(f"{self.name} gave completion {row} a reward that is NaN or infinite; it must be finite")


def reward_sources(reward_model: Any, weights: Sequence[float] | None) -> list[RewardSource]:
    """The sources in `reward_model`: one, or a list, with their weights; each has a name of its own.

    Raises:
        ValueError: no source, something that is none, or a number of weights that does not fit.
    """
    sources = list(reward_model) if isinstance(reward_model, list | tuple) else [reward_model]
    if not sources or sources[0] is None:
        raise ValueError(
            f"reward_model is {reward_model!r}; it must be a token reward model, a function, or a list of these"
        )
    factors = [1.0] * len(sources) if weights is None else list(weights)
    if len(factors) != len(sources):
        raise ValueError(f"reward_weights has {len(factors)} entries; it must have {len(sources)}, one a reward source")
    result: list[RewardSource] = []
    for source, factor in zip(sources, factors, strict=True):
        named = RewardSource(source, factor)
        if named.name in {other.name for other in result}:
            named.name = f"{named.name}_{len(result)}"
        result.append(named)
    return result


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
        f"the vocabulary of the reward model's tokenizer is not the policy's: token {token!r} is "
        f"{_id_of(token, theirs)} there and {_id_of(token, ours)} here; it must be the same in both"
    )


def _id_of(token: str, vocabulary: dict[str, int]) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "absent"


def _in_form_of(prompt: Any, text: str) -> Any:
    """The completion as text, or as messages where the prompt is messages."""
    return [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
