"""One reward a token: from a user's function or a token reward model to verl's `rm_scores`.

    reward.reward_manager.source=importlib reward.reward_manager.name=DenseRewardManager
    reward.reward_manager.module.path=pkg://fgrl.integrations.verl.rewards

From there they are `token_level_scores` and, with the KL penalty, `token_level_rewards`. verl has room for one number a
response on the way: what lays the others out is replaced in every process that meets a `TokenRewards`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, AgentLoopWorker
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from fgrl.integrations._host import Patch, Replacement
from fgrl.integrations.verl import patches

_as_dict, _postprocess = AgentLoopOutput.as_dict, AgentLoopWorker._postprocess
_agent_loop_postprocess = AgentLoopWorker._agent_loop_postprocess


class TokenRewards(float):
    """What verl carries as the score of a response: its sum for whoever knows one number, and a reward a token.

    Args:
        tokens: one reward a token of the response, tokens of tools included, which are not read.
        outcome: added at the last token that the policy produced.
    """

    tokens: list[float]
    outcome: float

    def __new__(cls, tokens: Sequence[float], outcome: float = 0.0) -> TokenRewards:
        self = super().__new__(cls, math.fsum([*tokens, outcome]))
        self.tokens, self.outcome = list(tokens), outcome
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tokens, self.outcome)

    def laid_out(self, mask: Tensor) -> Tensor:
        """`rm_scores` of a response with this mask `[T]`: fp32 `[T]`, 0 where the mask is.

        Raises:
            ValueError: the response has another number of tokens, as the earlier responses of an agent loop have that
                returns several for one prompt.
        """
        if len(self.tokens) != len(mask):
            raise ValueError(
                f"the reward has {len(self.tokens)} entries; it must have {len(mask)}, one a token of the response"
            )
        valid = mask.bool()
        scores = torch.where(valid, torch.tensor(self.tokens, dtype=torch.float32, device=mask.device), 0.0)
        if valid.any():
            scores[valid.nonzero()[-1]] += self.outcome
        return scores


class DenseRewardManager(NaiveRewardManager):
    """verl's naive reward manager for token rewards.

    `reward.custom_reward_function` has verl's signature, and returns one number a token of the response (a list, an
    array or a tensor), or one number for all of it, or a dictionary with either of them as `"score"`, and may add
    `"token_rewards"` to the latter. `extra_info` has, beside verl's entries, `prompt_ids`, `response_ids` and
    `response_tokens`, the text of each token of the response.

    `+reward.reward_kwargs.token_reward_model=PATH` adds the rewards of a `TokenRewardModel`, computed in the reward
    workers, times `+reward.reward_kwargs.token_reward_scale` (default 1).

    Raises:
        ValueError: neither a function nor a model is given; the model's vocabulary is not the policy's.
    """

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, tokenizer, compute_score, *args, **kwargs)
        options = config.reward.get("reward_kwargs") or {}
        self.has_function = config.reward.custom_reward_function.path is not None
        self.scale, self.model = float(options.get("token_reward_scale", 1.0)), None
        path = options.get("token_reward_model")
        if path is None and not self.has_function:
            raise ValueError(
                "reward.custom_reward_function.path and reward.reward_kwargs.token_reward_model are None; one of them "
                "must be given"
            )
        if path is not None:
            from fgrl.models import TokenRewardModel, load_tokenizer
            from fgrl.trainer.reward_sources import check_same_vocabulary

            check_same_vocabulary(tokenizer, load_tokenizer(path))
            self.model = TokenRewardModel.from_pretrained(path, trainable=False)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of the last response in `data`, a `DataProto`: `reward_score` is a `TokenRewards`.

        Raises:
            ValueError: the function returns another number of rewards than the response has tokens, or one that is not
                finite.
        """
        data = data[-1:]
        prompt, response = _token_ids(data)
        outcome, rewards, extra = 0.0, torch.zeros(len(response)), {}
        if self.has_function:
            data.non_tensor_batch["extra_info"] = np.array(
                [
                    {
                        **(data.non_tensor_batch.get("extra_info", [{}])[0] or {}),
                        "prompt_ids": prompt,
                        "response_ids": response,
                        "response_tokens": [self.tokenizer.decode([token]) for token in response],
                    }
                ],
                dtype=object,
            )
            result = await super().run_single(data)
            score, extra = result["reward_score"], result["reward_extra_info"]
            tokens = extra.pop("token_rewards", None)
            if tokens is None and np.ndim(score) == 1:
                score, tokens = 0.0, score
            outcome = _finite("score", score, ()).item()
            if tokens is not None:
                rewards = rewards + _finite("token_rewards", tokens, (len(response),))
        if self.model is not None:
            rewards = rewards + await self.loop.run_in_executor(None, self._model_rewards, prompt, response)
        score = TokenRewards(rewards.tolist(), outcome)
        extra.update({key: float(score) for key in ("score", "acc") if np.ndim(extra.get(key, 0.0)) == 1})
        return {"reward_score": score, "reward_extra_info": extra}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: Sequence[TokenRewards]) -> Tensor:
        """`rm_scores` `[B, T]` of a batch, where verl scores it as a whole (a reward model beside the policy)."""
        width = data.batch["responses"].shape[1]
        masks = data.batch.get("response_mask", data.batch["attention_mask"][:, -width:])
        return _rows(scores, masks, data.batch["attention_mask"][:, -width:])

    @torch.no_grad()
    def _model_rewards(self, prompt: list[int], response: list[int]) -> Tensor:
        assert self.model is not None
        ids = torch.tensor([prompt + response], device=self.model.device)
        return self.scale * self.model(ids, torch.ones_like(ids))[0, len(prompt) :].cpu()


def as_dict(self: Any) -> dict[str, Any]:
    """`AgentLoopOutput.as_dict`, which puts a score at the last token, with each token reward at its own."""
    output = _as_dict(self)
    if isinstance(self.reward_score, TokenRewards):
        output["rm_scores"] = self.reward_score.laid_out(output["response_mask"])
    return output


async def agent_loop_postprocess(self: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
    """`AgentLoopWorker._agent_loop_postprocess`, which makes a plain number of the score, with the score as it was.

    The trainer of `trainer.use_v1=False` comes here and to `postprocess`; the default one has a method of its own.
    """
    padded = await _agent_loop_postprocess(self, output, *args, **kwargs)
    padded.reward_score = output.reward_score
    return padded


def postprocess(self: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
    """`AgentLoopWorker._postprocess`, which makes the batch, with each token reward at its own token."""
    data = _postprocess(self, inputs, *args, **kwargs)
    scores = [output.reward_score for output in inputs]
    if any(isinstance(score, TokenRewards) for score in scores):
        width = data.batch["responses"].shape[1]
        data.batch["rm_scores"] = _rows(scores, data.batch["response_mask"], data.batch["attention_mask"][:, -width:])
    return data


def _rows(scores: Sequence[TokenRewards], masks: Tensor, attention: Tensor) -> Tensor:
    """`rm_scores` `[B, T]` from the scores of responses that are padded at the end."""
    rows = torch.zeros(masks.shape, dtype=torch.float32, device=masks.device)
    for row, score, mask, length in zip(rows, scores, masks, attention.sum(1).tolist(), strict=True):
        row[:length] = score.laid_out(mask[:length])
    return rows


def _token_ids(data: Any) -> tuple[list[int], list[int]]:
    """Prompt and response of the only row, without padding."""
    prompts, responses, attention = (data.batch[name][0] for name in ("prompts", "responses", "attention_mask"))
    lengths = [data.non_tensor_batch.get(name) for name in ("prompt_len", "response_len")]
    if all(length is not None for length in lengths):  # of an agent loop, whose mask is that of the joined tokens
        return prompts[: lengths[0][0]].tolist(), responses[: lengths[1][0]].tolist()
    prompt_mask, response_mask = attention.bool().split([len(prompts), len(responses)])
    return prompts[prompt_mask].tolist(), responses[response_mask].tolist()


def _finite(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    found = torch.as_tensor(value, dtype=torch.float32)
    if found.shape != shape:
        kind = f"one number for each of the {shape[0]} tokens of the response" if shape else "one number"
        raise ValueError(f"{name} of compute_score has shape {list(found.shape)}; it must be {kind}")
    if not found.isfinite().all():
        raise ValueError(f"{name} of compute_score has values that are not finite; they must be finite")
    return found


patches.append(
    Patch(
        "fgrl.integrations.verl.rewards",
        [
            Replacement(AgentLoopOutput, "as_dict", as_dict),
            Replacement(AgentLoopWorker, "_agent_loop_postprocess", agent_loop_postprocess),
            Replacement(AgentLoopWorker, "_postprocess", postprocess),
        ],
    ).apply()
)
