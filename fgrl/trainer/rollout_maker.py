"""How a rollout is made: sample, score, take log-probabilities and values, shape the rewards, take advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fgrl.data import pad_token_id
from fgrl.models.fit import vocabulary_rows
from fgrl.ops import token_advantages
from fgrl.trainer.actor_critic import ActorCritic
from fgrl.trainer.ppo_config import FineGrainedPPOConfig
from fgrl.trainer.ppo_metrics import RunningMeans
from fgrl.trainer.reward_batch import last_token
from fgrl.trainer.reward_sources import RewardSource, Scores, ScoringContext
from fgrl.trainer.rollout import Rollout, before_tokens, completion_logprobs
from fgrl.trainer.sampling import Completions, end_token_ids, sample


@dataclass
class RolloutMaker:
    """Makes rollouts for `FineGrainedPPOTrainer`; see there for the meaning of the fields."""

    args: FineGrainedPPOConfig
    tokenizer: Any
    sources: list[RewardSource]
    reference: nn.Module | None
    accelerator: Any
    vocab_size: int | None = None  # ids from here on are unknown to some model, and never sampled

    @torch.no_grad()
    def make(
        self, actor_critic: ActorCritic, rows: Sequence[dict[str, Any]], state: Any, metrics: RunningMeans
    ) -> Rollout:
        """Sample a completion for each row and prepare it for training; involves no other process.

        Args:
            actor_critic: the policy and the value model, unwrapped.
            rows: of the data set, each with `prompt_ids`.
            state: the trainer's state, for reward functions.
            metrics: gets what there is to report.
        """
        was_training = actor_critic.training
        actor_critic.eval()
        with self.accelerator.autocast():
            completions = self._sample(actor_critic.policy, rows)
            logprobs = self._logprobs(actor_critic.policy, completions)
            by_source = self._score(completions, logprobs, rows, state)
            ref_logprobs = self._ref_logprobs(completions)
            values, last_values = self._values(actor_critic, completions)
        actor_critic.train(was_training)

        args, mask = self.args, completions.completion_mask
        rewards = self._at_level(by_source, completions)
        result = token_advantages(
            rewards.token,
            values,
            logprobs,
            ref_logprobs,
            mask,
            sequence_rewards=rewards.sequence,
            reward_scale=args.reward_scale,
            reward_clip=args.reward_clip,
            kl_coef=args.reward_kl_coef,
            kl_estimator=args.reward_kl_estimator,  # type: ignore[arg-type]
            gamma=args.gamma,
            lam=args.lam,
            bootstrap=last_values.masked_fill(completions.finished, 0.0) if args.bootstrap_truncated else None,
        )

        tokens = mask.sum()
        totals = {f"reward/{name}": scores.total(mask).mean() for name, scores in by_source.items()}
        per_sequence = {
            "reward": rewards.total(mask).mean(),
            **totals,
            "kl_per_sequence": result.kl.sum(1).mean(),
            "completion_length": tokens / len(mask),
            "finished": completions.finished.float().mean(),
        }
        metrics.add(per_sequence, weight=len(mask))
        per_token = {
            "kl_per_token": result.kl.sum() / tokens,
            "value": values.sum() / tokens,
            "explained_variance": _explained_variance(values, result.returns, mask),
        }
        metrics.add(per_token, weight=tokens)
        return Rollout(
            input_ids=completions.input_ids,
            attention_mask=completions.attention_mask,
            completion_mask=mask,
            old_logprobs=logprobs,
            ref_logprobs=ref_logprobs if args.loss_kl_coef else None,
            old_values=values,
            advantages=result.advantages,
            moments=result.moments,
            returns=result.returns,
        )

    def _sample(self, policy: nn.Module, rows: Sequence[dict[str, Any]]) -> Completions:
        args = self.args
        options = dict(args.generation_kwargs or {})  # type: ignore[arg-type]
        rows_of_policy = vocabulary_rows(policy)
        if self.vocab_size is not None and rows_of_policy is not None and self.vocab_size < rows_of_policy:
            padding = range(self.vocab_size, rows_of_policy)
            options["suppress_tokens"] = sorted({*(options.get("suppress_tokens") or ()), *padding})
        return sample(
            policy,
            [row["prompt_ids"] for row in rows],
            pad_token_id=pad_token_id(self.tokenizer),
            eos_token_ids=end_token_ids(policy, self.tokenizer),
            batch_size=args.rollout_forward_batch_size,
            max_new_tokens=args.max_completion_length,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            **options,
        )

    def _score(
        self, completions: Completions, logprobs: Tensor, rows: Sequence[dict[str, Any]], state: Any
    ) -> dict[str, Scores]:
        """Each source's scores, by its name."""
        texts = self.tokenizer.batch_decode(completions.as_lists(), skip_special_tokens=True)
        context = ScoringContext(rows, texts, state, self.args.rollout_forward_batch_size, logprobs)
        return {source.name: source(completions, context) for source in self.sources}

    def _at_level(self, by_source: dict[str, Scores], completions: Completions) -> Scores:
        """What PPO sees: the sum, at `reward_level="sequence"` of the last token only, less the penalty for no EOS."""
        token = torch.stack([scores.token for scores in by_source.values()]).sum(0)
        sequence = torch.stack([scores.sequence for scores in by_source.values()]).sum(0)
        if self.args.reward_level == "sequence":
            token = torch.where(last_token(completions.completion_mask), token, 0.0)
        if self.args.missing_eos_penalty is not None:
            sequence = torch.where(completions.finished, sequence, sequence - self.args.missing_eos_penalty)
        return Scores(token, sequence)

    def _logprobs(self, model: nn.Module, completions: Completions) -> Tensor:
        parts = completions.parts(self.args.rollout_forward_batch_size)
        return torch.cat([completion_logprobs(model, part, self.args.temperature) for part in parts])

    def _ref_logprobs(self, completions: Completions) -> Tensor | None:
        return None if self.reference is None else self._logprobs(self.reference, completions)

    def _values(self, actor_critic: ActorCritic, completions: Completions) -> tuple[Tensor, Tensor]:
        """V before each token of the completions `[B, T]`, and V after the last one `[B]`."""
        mask = completions.completion_mask
        parts = completions.parts(self.args.rollout_forward_batch_size)
        values = torch.cat([actor_critic.value_model(part.input_ids, part.attention_mask) for part in parts])
        after = values[:, -mask.shape[1] :]
        last = after.gather(1, mask.sum(1, keepdim=True).sub(1).clamp(min=0))[:, 0]
        return torch.where(mask, before_tokens(values, mask.shape[1]), 0.0), last


def _explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the valid tokens; 0 where the returns do not vary."""
    target, error = returns[mask].double(), (returns - values)[mask].double()
    variance = target.var(unbiased=False)
    return torch.where(variance > 0, 1 - error.var(unbiased=False) / variance, 0.0)
