"""Options of `FineGrainedPPOTrainer`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from transformers import TrainingArguments

from fgrl.trainer.options import Refusals, check_dtype, check_options
from fgrl.trainer.sampling import RESERVED
from fgrl.types import KLEstimator, PPOLossConfig

_DEPRECATED = "deprecated"
_RENAMED = {"kl_coef": "reward_kl_coef", "kl_estimator": "reward_kl_estimator", "cliprange_value": "value_clip"}


@dataclass
class FineGrainedPPOConfig(TrainingArguments):
    """Options of `FineGrainedPPOTrainer`, on top of those of `transformers.TrainingArguments`.

    One rollout takes `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches` prompts a process
    and is used for `num_ppo_epochs * num_mini_batches` optimizer steps. `max_steps` counts optimizer steps;
    `total_episodes` counts completions and, where given, sets `max_steps`.

    Args:
        total_episodes: number of completions to train on, over all processes.
        num_ppo_epochs: passes over each rollout.
        num_mini_batches: optimizer steps a pass.
        rollout_forward_batch_size: sequences a forward pass while a rollout is scored (no gradient).
        model_init_kwargs: options of `fgrl.models.load_causal_lm`, where the policy is given by name.
        dtype: of the policy's weights, where it is given by name: "float32" (default), "bfloat16", "float16", or
            "auto", that of the checkpoint. One rule holds for all models: float32 for the two that are trained, since
            half precision is too coarse for their updates, and the checkpoint's dtype for those that only score.
        value_dtype: likewise of the value model, where it is given by name or made from the policy; default "float32".
        ref_dtype: likewise of the reference; default "auto", which for a copy of the policy is the policy's.
        reward_dtype: likewise of reward models given by name; default "auto".
        max_prompt_length: longest prompt, in tokens, or what the policy's context leaves where that is shorter; longer
            prompts lose their beginning.
        max_completion_length: longest completion, in tokens.
        temperature: sampling temperature; the log-probabilities are taken at the same one.
        top_k: sample among the k likeliest tokens; 0 for all.
        top_p: sample among the likeliest tokens of this total probability.
        generation_kwargs: further options of `transformers.GenerationConfig`. The model's own generation config has no
            say but for its end-of-sequence tokens. An option that changes the distribution (`repetition_penalty`) or
            `top_k` and `top_p` make the samples off-policy: the log-probabilities are of the full distribution.
        reward_level: "token" gives every token its own reward; "sequence" keeps only the one of the last token, which
            is ordinary PPO.
        reward_weights: one factor a reward source; default 1 each.
        reward_scale: factor of the token rewards; the numbers a completion that functions return are added as they are.
        reward_clip: token rewards are clipped to `[-reward_clip, reward_clip]`.
        missing_eos_penalty: subtracted from the sequence reward of a completion without an end-of-sequence token.
        reference: what the KL is taken against where no `ref_model` is given: "start", the policy as it is when the
            trainer is built, its adapters included; "base", the same without its adapters. Either is a frozen copy that
            shares what is not trained with the policy.
        reward_kl_coef: weight of the KL penalty inside the token rewards.
        reward_kl_estimator: its estimator: "k1", "k2", "k3" or "abs".
        gamma: discount.
        lam: trace decay of GAE.
        bootstrap_truncated: bootstrap completions cut off at `max_completion_length` with the value model's estimate
            instead of treating them as finished.
        whiten_advantages: shift and scale the advantages of a rollout, over all processes, to mean 0 and variance 1.
        loss: the policy loss, "clip", "gspo", "gspo-token", "gmpo", "cispo", "sapo" or "reinforce"; see
            `fgrl.ops.PPOLossConfig`, also for the options from here to `aggregation`.
        clip_low: the ratio is clipped at `1 - clip_low`.
        clip_high: and at `1 + clip_high`.
        dual_clip: bound for negative advantages.
        tau_positive: SAPO's temperature for tokens with an advantage above 0.
        tau_negative: SAPO's temperature for the others.
        loss_kl_coef: weight of a KL term in the loss (next to, or in place of, the one in the rewards).
        loss_kl_estimator: its estimator.
        entropy_coef: weight of the entropy bonus.
        aggregation: how the token losses of a batch become one number.
        vf_coef: weight of the value loss.
        value_clip: clip of the value loss; None for the plain squared error.
        value_learning_rate: learning rate of the value model; default: `learning_rate`.
        disable_dropout: turn all dropout off, so that the first ratio of an update is exactly 1.
        kl_coef: deprecated name of `reward_kl_coef`.
        kl_estimator: deprecated name of `reward_kl_estimator`.
        cliprange_value: deprecated name of `value_clip`.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "generation_kwargs",
        "model_init_kwargs",
    ]

    learning_rate: float = 1e-6
    logging_steps: float = 1
    total_episodes: int | None = None
    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    rollout_forward_batch_size: int = 64
    model_init_kwargs: dict[str, Any] | str | None = None
    dtype: str | None = None
    value_dtype: str | None = None
    ref_dtype: str | None = None
    reward_dtype: str | None = None
    max_prompt_length: int = 512
    max_completion_length: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    generation_kwargs: dict[str, Any] | str | None = None
    reward_level: Literal["token", "sequence"] = "token"
    reward_weights: list[float] | None = field(default=None)
    reward_scale: float = 1.0
    reward_clip: float | None = None
    missing_eos_penalty: float | None = None
    reference: Literal["start", "base"] = "start"
    reward_kl_coef: float = 0.05
    reward_kl_estimator: str = "k1"
    gamma: float = 1.0
    lam: float = 0.95
    bootstrap_truncated: bool = False
    whiten_advantages: bool = True
    loss: str = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    tau_positive: float = 1.0
    tau_negative: float = 1.05
    loss_kl_coef: float = 0.0
    loss_kl_estimator: str = "k3+"
    entropy_coef: float = 0.0
    aggregation: str = "token-mean"
    vf_coef: float = 0.1
    value_clip: float | None = 0.2
    value_learning_rate: float | None = None
    disable_dropout: bool = True

    kl_coef: float | str = _DEPRECATED
    kl_estimator: str = _DEPRECATED
    cliprange_value: float | str | None = _DEPRECATED

    def __post_init__(self) -> None:
        for old, new in _RENAMED.items():
            if getattr(self, old) != _DEPRECATED:
                warnings.warn(f"{old} is deprecated; use {new}", DeprecationWarning, stacklevel=3)
                setattr(self, new, getattr(self, old))
                setattr(self, old, _DEPRECATED)
        super().__post_init__()
        check_options(self, _REFUSED, _REFUSED_ACCELERATE)
        for name in (
            "num_ppo_epochs",
            "num_mini_batches",
            "rollout_forward_batch_size",
            "max_prompt_length",
            "max_completion_length",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1]")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be greater than 0")
        for name in ("reward_kl_coef", "vf_coef", "top_k"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("reward_clip", "value_clip"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0, or None")
        for name in ("dtype", "value_dtype", "ref_dtype", "reward_dtype"):
            check_dtype(name, getattr(self, name))
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be in (0, 1]")
        taken = sorted(set(self.generation_kwargs or {}) & set(RESERVED))
        if taken:
            raise ValueError(f"generation_kwargs has {taken[0]!r}; it must not: the trainer sets it itself")
        if self.reward_kl_estimator not in (names := get_args(KLEstimator)):
            raise ValueError(
                f"reward_kl_estimator is {self.reward_kl_estimator!r}; it must be one of {', '.join(names)}"
            )
        if self.reward_level not in ("token", "sequence"):
            raise ValueError(f"reward_level is {self.reward_level!r}; it must be 'token' or 'sequence'")
        if self.reference not in ("start", "base"):
            raise ValueError(f"reference is {self.reference!r}; it must be 'start' or 'base'")
        if self.total_episodes is not None and self.total_episodes < 1:
            raise ValueError(f"total_episodes is {self.total_episodes}; it must be at least 1, or None")
        self.loss_config  # noqa: B018  (its own validation names the option)

    @property
    def loss_config(self) -> PPOLossConfig:
        """The options of `fgrl.ops.linear_ppo_loss`."""
        return PPOLossConfig(
            loss=self.loss,  # type: ignore[arg-type]
            tau_positive=self.tau_positive,
            tau_negative=self.tau_negative,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
            kl_coef=self.loss_kl_coef,
            kl_estimator=self.loss_kl_estimator,  # type: ignore[arg-type]
            entropy_coef=self.entropy_coef,
            aggregation=self.aggregation,  # type: ignore[arg-type]
        )

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps on one rollout."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def micro_batches_per_rollout(self) -> int:
        """Forward-backward passes for one pass over a rollout."""
        return self.gradient_accumulation_steps * self.num_mini_batches

    @property
    def rollout_batch_size(self) -> int:
        """Prompts a rollout, per process."""
        return self.train_batch_size * self.micro_batches_per_rollout


_REFUSED: Refusals = {
    "deepspeed": ((None,), "PPO does not support DeepSpeed"),
    "fsdp": ((None,), "PPO does not support FSDP"),
    "neftune_noise_alpha": ((None,), "PPO does not support NEFTune"),
    "auto_find_batch_size": ((False,), "a rollout has a fixed number of prompts"),
    "torch_compile": ((False,), "policy and value model in one compiled graph have never been tested"),
    "use_liger_kernel": ((False,), "its kernels of the loss would not be used: the logits are not computed at all"),
    "train_sampling_strategy": (("random", "sequential"), "prompts are not grouped by length"),
    "dataloader_in_order": ((True,), "the batches of a rollout come one after the other"),
}
_REFUSED_ACCELERATE: Refusals = {
    "split_batches": ((False,), "a rollout has `rollout_batch_size` prompts in every process"),
}
