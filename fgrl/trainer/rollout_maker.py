"""How a rollout is made: sample, score, take log-probabilities and values, shape the rewards, take advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fgrl.data import PromptEncoder, pad_token_id
from fgrl.ops import token_advantages, whiten
from fgrl.trainer.actor_critic import ActorCritic
from fgrl.trainer.ppo_config import FineGrainedPPOConfig
from fgrl.trainer.reward_batch import last_token
from fgrl.trainer.reward_sources import RewardSource, Scores
from fgrl.trainer.rollout import Completions, Rollout, before_tokens, completion_logprobs, sample


@dataclass
class RolloutMaker:
    """Makes rollouts for `FineGrainedPPOTrainer`; see there for the meaning of the fields."""

    args: FineGrainedPPOConfig
    processing_class: Any
    encoder: PromptEncoder
    sources: list[RewardSource]
    ref_model: nn.Module | None
    uses_reference: bool

    @torch.no_grad()
    def make(
        self, actor_critic: ActorCritic, rows: Sequence[dict[str, Any]], accelerator: Any
    ) -> tuple[Rollout, dict[str, Tensor]]:
        """Sample a completion for each row and prepare it for training.

        Returns:
            The rollout, and 0-d metrics of this process.
        """
        was_training = actor_critic.training
        actor_critic.eval()
        with accelerator.autocast():
            completions = self._sample(actor_critic.policy, rows)
            scores, by_source = self._score(completions, rows)
            logprobs = self._logprobs(actor_critic.policy, completions)
            ref_logprobs = self._ref_logprobs(actor_critic.policy, completions)
            values, last_values = self._values(actor_critic, completions)
        actor_critic.train(was_training)

        args, mask = self.args, completions.completion_mask
        token_rewards, sequence_rewards = self._at_level(scores, completions)
        result = token_advantages(
            token_rewards,
            values,
            logprobs,
            ref_logprobs,
            mask,
            sequence_rewards=sequence_rewards,
            reward_scale=args.reward_scale,
            reward_clip=args.reward_clip,
            kl_coef=args.kl_coef,
            kl_estimator=args.kl_estimator,  # type: ignore[arg-type]
            gamma=args.gamma,
            lam=args.lam,
            bootstrap=last_values.masked_fill(completions.finished, 0.0) if args.bootstrap_truncated else None,
        )
        advantages = result.advantages
        if args.whiten_advantages:
            group = dist.group.WORLD if accelerator.num_processes > 1 else None
            advantages = whiten(advantages, mask, result.moments, group=group)
        rollout = Rollout(
            input_ids=completions.input_ids,
            attention_mask=completions.attention_mask,
            completion_mask=mask,
            old_logprobs=logprobs,
            ref_logprobs=ref_logprobs if args.loss_kl_coef else None,
            old_values=values,
            advantages=advantages,
            returns=result.returns,
        )
        tokens = mask.sum().clamp(min=1)
        metrics = {
            "reward": Scores(token_rewards, sequence_rewards).total(mask).mean(),
            **{f"reward/{name}": score.total(mask).mean() for name, score in by_source.items()},
            "kl_per_token": result.kl.sum() / tokens,
            "kl_per_sequence": result.kl.sum(1).mean(),
            "completion_length": mask.sum(1).float().mean(),
            "finished": completions.finished.float().mean(),
            "value": values.sum() / tokens,
            "explained_variance": _explained_variance(values, result.returns, mask),
        }
        return rollout, metrics

    def _sample(self, policy: nn.Module, rows: Sequence[dict[str, Any]]) -> Completions:
        tokenizer, args = self.processing_class, self.args
        prompt_ids = [row["prompt_ids"][-args.max_prompt_length :] for row in rows if "prompt_ids" in row]
        if not prompt_ids:
            prompt_ids = self.encoder([row["prompt"] for row in rows])
        eos = tokenizer.eos_token_id
        return sample(
            policy,
            prompt_ids,
            pad_token_id=pad_token_id(tokenizer),
            eos_token_ids=[] if eos is None else [eos],
            max_new_tokens=args.max_completion_length,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            **(args.generation_kwargs or {}),  # type: ignore[arg-type]
        )

    def _score(self, completions: Completions, rows: Sequence[dict[str, Any]]) -> tuple[Scores, dict[str, Scores]]:
        """The sum over the sources, and each source's own scores by name."""
        mask = completions.completion_mask
        ids = [row[keep].tolist() for row, keep in zip(completions.completion_ids, mask, strict=True)]
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        by_source: dict[str, Scores] = {}
        for source in self.sources:
            parts = [
                source(part, rows[start : start + len(part.input_ids)], texts[start : start + len(part.input_ids)])
                for start, part in self._parts(completions)
            ]
            name = source.name if source.name not in by_source else f"{source.name}_{len(by_source)}"
            by_source[name] = Scores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        token = torch.stack([scores.token for scores in by_source.values()]).sum(0)
        sequence = torch.stack([scores.sequence for scores in by_source.values()]).sum(0)
        return Scores(token, sequence), by_source

    def _at_level(self, scores: Scores, completions: Completions) -> Scores:
        """The rewards PPO sees: with `reward_level="sequence"` only the last token's, and the penalty for no EOS."""
        token, sequence = scores
        if self.args.reward_level == "sequence":
            token = torch.where(last_token(completions.completion_mask), token, 0.0)
        if self.args.missing_eos_penalty is not None:
            sequence = torch.where(completions.finished, sequence, sequence - self.args.missing_eos_penalty)
        return Scores(token, sequence)

    def _logprobs(self, model: nn.Module, completions: Completions) -> Tensor:
        parts = [completion_logprobs(model, part, self.args.temperature) for _, part in self._parts(completions)]
        return torch.cat(parts)

    def _ref_logprobs(self, policy: Any, completions: Completions) -> Tensor | None:
        if not self.uses_reference:
            return None
        if self.ref_model is not None:
            return self._logprobs(self.ref_model, completions)
        without_adapters = policy.disable_adapter() if hasattr(policy, "disable_adapter") else nullcontext()
        with without_adapters:
            return self._logprobs(policy, completions)

    def _values(self, actor_critic: ActorCritic, completions: Completions) -> tuple[Tensor, Tensor]:
        """V before each token of the completions `[B, T]`, and V after the last one `[B]`."""
        mask = completions.completion_mask
        values = torch.cat(
            [actor_critic.value_model(part.input_ids, part.attention_mask) for _, part in self._parts(completions)]
        )
        after = values[:, -mask.shape[1] :]
        last = after.gather(1, mask.sum(1, keepdim=True).sub(1).clamp(min=0))[:, 0]
        return torch.where(mask, before_tokens(values, mask.shape[1]), 0.0), last

    def _parts(self, completions: Completions) -> Iterator[tuple[int, Completions]]:
        size = self.args.rollout_forward_batch_size
        for start in range(0, len(completions.input_ids), size):
            yield start, completions.rows(start, start + size)


def _explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the valid tokens; 0 where the returns do not vary."""
    target, error = returns[mask].double(), (returns - values)[mask].double()
    variance = target.var(unbiased=False)
    return torch.where(variance > 0, 1 - error.var(unbiased=False) / variance, 0.0)
