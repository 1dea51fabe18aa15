"""GRPO with token-level rewards: TRL's trainer with `(B, T)` advantages."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from fgrl.integrations.trl.logprobs import patched
from fgrl.integrations.trl.rewards import OUTCOME, TOKENS, TokenRewards, as_token_reward_model, model_rewards
from fgrl.models import TokenRewardModel
from fgrl.models.fit import check_scorer
from fgrl.ops import group_advantages
from fgrl.trainer.reward_sources import check_same_vocabulary


class FineGrainedGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` whose reward functions may also return a list with one number a token.

    A reward function returns for each completion one number, or a list as long as its `completion_ids`, or None where
    it has no opinion; a `TokenRewardModel` among `reward_funcs` (or a token classifier of one label, or the path of
    one) scores every token. The advantage of token t of a completion is

        A_t = (outcome advantage, TRL's own) + sum over s >= t of token_gamma^(s - t) * r'_s

    where r' are the token rewards, weighted by `reward_weights` and added up over the functions, less their mean over
    the tokens of the group and over their standard deviation as `scale_rewards` says (`fgrl.ops.group_advantages`).
    Tokens of tools and of masked completions have no part in it. Without token rewards everything is TRL's.

    Log-probabilities and entropies come from `fgrl.ops.linear_logprobs` (see `patch_logprobs`). All else is TRL's:
    `loss_type`, PEFT, vLLM, tools, metrics and their names. Of those, `reward`, `reward_std` and
    `frac_reward_zero_std` count a list by its sum, as `rewards/<function>/mean` does.

    Args:
        token_gamma: discount of later token rewards, in [0, 1]; 0 gives each token its own reward alone.
        *args, **kwargs: `GRPOTrainer`'s.

    Raises:
        ValueError: `token_gamma` outside [0, 1]; a token reward model with another vocabulary than the policy's.

    Example:
        def no_repeats(completion_ids, **kwargs):
            return [[-float(a == b) for a, b in zip(ids, [None, *ids])] for ids in completion_ids]

        FineGrainedGRPOTrainer(model, reward_funcs=[no_repeats, outcome], train_dataset=prompts).train()
    """

    reward_funcs: list[Any]
    reward_weights: Tensor
    _tag_names = [*GRPOTrainer._tag_names, "fgrl"]  # noqa: RUF012 (TRL's form)

    def __init__(self, model: Any, reward_funcs: Any = None, *args: Any, token_gamma: float = 1.0, **kwargs: Any):
        if not (isinstance(token_gamma, int | float) and 0 <= token_gamma <= 1):
            raise ValueError(f"token_gamma is {token_gamma!r}; it must be in [0, 1]")
        if reward_funcs is not None:
            functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
            reward_funcs = [as_token_reward_model(function) for function in functions]
        self.token_gamma = token_gamma
        self._prompt_ids: Sequence[Sequence[int]] = []
        self._returned: list[TokenRewards] = []
        self._has_tokens = torch.zeros(0, dtype=torch.bool)
        self._rewards = torch.zeros(0, 0)
        super().__init__(model, reward_funcs, *args, **kwargs)
        for index, function in enumerate(self.reward_funcs):
            if isinstance(function, TokenRewardModel):
                self._prepare_reward_model(function, index)

    def _prepare_reward_model(self, model: TokenRewardModel, index: int) -> None:
        check_scorer(f"reward_funcs[{index}]", model, self.model, tokenizer=self._tokenizer, max_length=1)
        tokenizer = self.reward_processing_classes[index]
        if tokenizer is not None:
            check_same_vocabulary(self._tokenizer, tokenizer)
        model.to(self.accelerator.device).eval()

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with patched():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _generate(self, prompts: list[Any]) -> Any:
        result = super()._generate(prompts)
        self._prompt_ids = result[0]
        return result

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        self._returned = [TokenRewards(name, completion_ids_list) for name in self.reward_func_names]
        functions, weights = self.reward_funcs, self.reward_weights
        self.reward_funcs = [
            returned.around(self._as_function(function)) if _is_called(function) else function
            for returned, function in zip(self._returned, functions, strict=True)
        ]
        try:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = functions
        self._rewards, self._has_tokens = rewards, self._which_return_tokens()
        # TRL makes outcomes of these next: token rewards have no part in them, and a completion that has token rewards
        # alone has no outcome, unless none has.
        self.reward_weights = weights.to(rewards.device).masked_fill(self._has_tokens, 0.0)
        no_outcome = rewards[:, ~self._has_tokens].isnan().all(1)
        return rewards if no_outcome.all() else rewards.masked_fill(no_outcome[:, None], torch.nan)

    def _which_return_tokens(self) -> Tensor:
        """Which reward functions returned token rewards, on any process: bool `[F]`.

        Raises:
            ValueError: lists on one process and numbers on another.
        """
        here = torch.tensor([returned.kind for returned in self._returned], device=self.accelerator.device)
        everywhere = self.accelerator.gather(here).view(-1, len(here))
        mixed = (everywhere == TOKENS).any(0) & (everywhere == OUTCOME).any(0)
        if mixed.any():
            name = self.reward_func_names[int(mixed.nonzero()[0])]
            raise ValueError(f"reward function {name!r} returned numbers and lists; it must return one kind")
        return (everywhere == TOKENS).any(0)

    def _as_function(self, function: Any) -> Callable[..., Any]:
        """A reward function, or a token reward model called as one."""
        return partial(self._run_reward_model, function) if isinstance(function, TokenRewardModel) else function

    def _run_reward_model(self, model: TokenRewardModel, *, completion_ids: Any, **_: Any) -> list[Tensor]:
        return model_rewards(model, self._prompt_ids, completion_ids, self.args.per_device_train_batch_size)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        weights = self.reward_weights
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self.reward_weights = weights
        if self._has_tokens.any():
            self._warn_of_sequence_ratios()
            self._add_token_advantages(output)
        return output

    def _add_token_advantages(self, output: dict[str, Any]) -> None:
        mode = "train" if self.model.training else "eval"
        mask = output["completion_mask"].bool()
        if "tool_mask" in output:
            mask = mask & output["tool_mask"].bool()
        token_rewards, scored = self._local_token_rewards(mask.shape[1])
        counted = (mask & scored.to(mask.device)[:, None]).to(torch.float32)  # padding turns bool into another dtype
        # Groups may be spread over processes.
        all_rewards, all_counted = self._gather(token_rewards.to(mask.device)), self._gather(counted)
        size = self.num_generations if mode == "train" else self.num_generations_eval
        advantages = group_advantages(
            None,
            torch.arange(len(all_rewards), device=mask.device) // size,
            all_counted,
            token_rewards=all_rewards,
            scale=self.scale_rewards,
            gamma=self.token_gamma,
        )
        first, length = self.accelerator.process_index * len(mask), mask.shape[1]
        local = advantages[first : first + len(mask), :length]
        output["advantages"] = output["advantages"][:, None] * mask + local
        self._log_rewards(mode, size)
        self._log_mean_advantages(output["advantages"], mask)

    def _local_token_rewards(self, length: int) -> tuple[Tensor, Tensor]:
        """Weighted sums of the functions' token rewards, `[B, T]`, and which completions any of them scored, `[B]`."""
        rewards = torch.zeros(len(self._prompt_ids), length)
        scored = torch.zeros(len(self._prompt_ids), dtype=torch.bool)
        for returned, weight in zip(self._returned, self.reward_weights.tolist(), strict=True):
            for index, tokens in enumerate(returned.tokens):
                if tokens is not None:
                    rewards[index, : len(tokens)] += weight * tokens
                    scored[index] = True
        return rewards, scored

    def _gather(self, rows: Tensor) -> Tensor:
        return self.accelerator.gather(self.accelerator.pad_across_processes(rows, dim=1))

    def _log_rewards(self, mode: str, group_size: int) -> None:
        """TRL's metrics of the rewards, token rewards included by their sums."""
        rewards = self._rewards
        weighted = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        totals = torch.where(rewards.isnan().all(1), torch.nan, weighted)
        deviations = nanstd(totals.view(-1, group_size), dim=1) if group_size > 1 else torch.zeros(1)
        metrics = {
            "reward": totals.nanmean(),
            "reward_std": nanstd(totals),
            "frac_reward_zero_std": torch.isclose(deviations, torch.zeros_like(deviations)).float().mean(),
        }
        for name, column in zip(self.reward_func_names, rewards.unbind(1), strict=True):
            metrics |= {f"rewards/{name}/mean": column.nanmean(), f"rewards/{name}/std": nanstd(column)}
        for name, value in metrics.items():
            self._metrics[mode][name][-1] = value.item()

    def _log_mean_advantages(self, advantages: Tensor, mask: Tensor) -> None:
        """One number a completion in TRL's table: the mean over its tokens."""
        means = self.accelerator.gather(advantages.sum(1) / mask.sum(1).clamp(min=1)).tolist()
        logged = self._logs["advantages"]
        for _ in range(min(len(means), len(logged))):
            logged.pop()
        logged.extend(means)

    def _warn_of_sequence_ratios(self) -> None:
        if self.importance_sampling_level == "sequence":
            warnings.warn(
                "importance_sampling_level is 'sequence': all tokens of a completion share one ratio, so that token "
                "rewards act through their mean alone; use 'token' for credit at each token",
                stacklevel=2,
            )


def _is_called(function: Any) -> bool:
    """Whether TRL calls it with completions; other modules are sequence classifiers, which it runs itself."""
    return isinstance(function, TokenRewardModel) or not isinstance(function, torch.nn.Module)
