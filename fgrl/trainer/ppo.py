"""`FineGrainedPPOTrainer`: PPO with a reward at every token, on `transformers.Trainer`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from fgrl.models import ValueModel, load_tokenizer
from fgrl.trainer.actor_critic import ActorCritic, step_normalizer
from fgrl.trainer.model_checks import check_apart, trained_parameters
from fgrl.trainer.ppo_config import FineGrainedPPOConfig
from fgrl.trainer.ppo_data import RolloutCallback, RolloutSampler, as_rows, prompt_rows
from fgrl.trainer.ppo_metrics import RunningMeans
from fgrl.trainer.ppo_models import (
    check_scorers,
    common_vocabulary,
    load_reward_models,
    load_weights,
    longest_prompt,
    prepare_models,
)
from fgrl.trainer.reward_sources import check_same_vocabulary, reward_sources
from fgrl.trainer.rollout import Rollout
from fgrl.trainer.rollout_maker import RolloutMaker

_VALUE_FOLDER = "value_model"
_NORMALIZED_STATS = ("policy_loss", "value_loss", "kl", "entropy")
_MAXIMA = ("ratio_max",)


class FineGrainedPPOTrainer(Trainer):
    """PPO whose reward, advantage and loss are per token (Xu et al., arXiv 2406.02756).

    Each rollout samples one completion a prompt, scores every token of it with the reward sources, takes
    `fgrl.ops.token_advantages`, and trains policy and value model for `num_ppo_epochs` passes with
    `fgrl.ops.linear_ppo_loss` and `fgrl.ops.value_loss`. With `reward_level="sequence"` only the last token's reward
    is kept: ordinary PPO, by the same code. Checkpoints hold the policy as a plain Hugging Face model, and the value
    model in the folder `value_model`.

    `trainer.model` is policy and value model in one module; callbacks that generate or save want `trainer.policy`.

    Args:
        model: the policy: a causal LM, a `PeftModel` of one, or a folder, name or `.gguf` file to load it from.
        ref_model: the model the KL is taken against, or a name to load it from. Default: a frozen copy of the policy as
            it is now, or of its base without adapters, as `args.reference` says. None is kept where neither
            `reward_kl_coef` nor `loss_kl_coef` is set.
        reward_model: a `TokenRewardModel` or a name to load it from, a token-classification model of one label, a
            function as in TRL (see `fgrl.trainer.reward_sources.RewardSource`), or a list of these, which add up.
        value_model: a `ValueModel`, a token-classification model of one label, or a name to load it from. Default: a
            copy of the policy's backbone with a new head.
        args: the options.
        processing_class: the policy's tokenizer; by default that of `model` where it is a name.
        train_dataset: rows with `prompt` (text or chat messages) or `prompt_ids` (token ids): a path that
            `fgrl.data.read_prompts` reads, a `datasets.Dataset`, or a list of dicts. Other columns go to the reward
            functions.
        eval_dataset: likewise; `evaluate` samples from it and reports the rewards.
        callbacks: as in `transformers.Trainer`.
        optimizers: as in `transformers.Trainer`.
        peft_config: trains adapters of the policy and of the value model instead of all weights.
        reward_processing_class: the reward model's tokenizer, where it is another object: its vocabulary must be the
            policy's.

    Raises:
        ValueError: an argument that does not fit, a reward model with another vocabulary included.

    Example:
        >>> trainer = FineGrainedPPOTrainer(
        ...     "my-sft-model", reward_model=reward_model, args=args, train_dataset="prompts.jsonl"
        ... )  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    args: FineGrainedPPOConfig

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str],
        ref_model: nn.Module | str | os.PathLike[str] | None = None,
        reward_model: Any = None,
        value_model: ValueModel | str | os.PathLike[str] | None = None,
        args: FineGrainedPPOConfig | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        reward_processing_class: PreTrainedTokenizerBase | None = None,
    ) -> None:
        args = FineGrainedPPOConfig(output_dir="fgrl-ppo") if args is None else args
        if processing_class is None:
            if isinstance(model, nn.Module):
                raise ValueError("processing_class is None; it must be the policy's tokenizer")
            processing_class = load_tokenizer(model)
        if reward_processing_class is not None:
            check_same_vocabulary(processing_class, reward_processing_class)
        if args.value_learning_rate is not None and optimizers[0] is not None:
            raise ValueError("value_learning_rate is set and an optimizer is given; it must be one or the other")
        sources = reward_sources(load_reward_models(reward_model, args, processing_class), args.reward_weights)
        models = prepare_models(model, ref_model, value_model, sources, args, processing_class, peft_config)
        self._models = models
        self._longest_prompt = longest_prompt(models.policy, args)
        self._vocab_size = common_vocabulary(models)
        train_rows = self._rows(train_dataset, "train_dataset", args, processing_class)
        if train_rows is None:
            raise ValueError("train_dataset is None; it must be rows with a prompt")
        group = args.rollout_batch_size * args.world_size
        self._sampler = RolloutSampler(
            len(train_rows),
            group,
            args.micro_batches_per_rollout * args.num_ppo_epochs,
            shuffle=args.train_sampling_strategy == "random",
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )
        if args.total_episodes is not None:
            args.max_steps = -(-args.total_episodes // group) * args.steps_per_rollout
        args.remove_unused_columns = False

        super().__init__(
            model=ActorCritic(models.policy, models.value, args),
            args=args,
            data_collator=as_rows,
            train_dataset=train_rows,
            eval_dataset=self._rows(eval_dataset, "eval_dataset", args, processing_class),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        set_seed(args.seed, device_specific=True)  # processes must not sample with the same random numbers
        self.add_callback(RolloutCallback(self._sampler, args.steps_per_rollout))
        for scorer in (models.reference, *(source.source for source in sources)):
            if isinstance(scorer, nn.Module):
                scorer.eval().to(args.device)
        self._maker = RolloutMaker(
            args, processing_class, sources, models.reference, self.accelerator, self._vocab_size
        )
        self._metrics = RunningMeans(args.device)
        self._forget_rollout()

    def _rows(self, dataset: Any, name: str, args: FineGrainedPPOConfig, tokenizer: Any) -> Any:
        """`dataset` as rows, each of which every model can take with its completion."""
        rows = prompt_rows(dataset, tokenizer, self._longest_prompt, name, self._vocab_size)
        if rows is not None:
            longest = max(len(row["prompt_ids"]) for row in rows)
            check_scorers(self._models, tokenizer, longest + args.max_completion_length)
        return rows

    @property
    def policy(self) -> PreTrainedModel:
        """The policy, unwrapped."""
        return self._actor_critic.policy

    @property
    def value_model(self) -> ValueModel:
        """The value model, unwrapped."""
        return self._actor_critic.value_model

    @property
    def _actor_critic(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Prompts of one rollout, `rollout_batch_size` a process, once for every forward-backward pass on it."""
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="training",
            batch_size=self.args.rollout_batch_size,
            sampler_fn=lambda _: self._sampler,
            is_training=True,
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As `transformers.Trainer`, with `value_learning_rate` for the value model where it is set."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._maker.reference is not None:  # which shares what was frozen when the trainer was built
            check_apart("the reference", self._maker.reference, trained_parameters(self._actor_critic))
        if is_new and self.args.value_learning_rate is not None:
            of_policy = {id(parameter) for parameter in self.policy.parameters()}
            of_value = {id(parameter) for parameter in self.value_model.parameters()} - of_policy
            for group in list(optimizer.param_groups):
                values = [parameter for parameter in group["params"] if id(parameter) in of_value]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in of_value]
                if values:
                    optimizer.add_param_group({**group, "params": values, "lr": self.args.value_learning_rate})
        return optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer`; starts with a rollout of its own."""
        self._forget_rollout()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._forget_rollout()

    def _forget_rollout(self) -> None:
        self._rollout: Rollout | None = None
        self._schedule: list[tuple[Tensor, Tensor]] = []
        self._pass = 0

    def _prepare_inputs(self, inputs: list[dict[str, Any]]) -> tuple[Rollout, Tensor]:  # type: ignore[override]
        """Sequences and normalizer of the next forward-backward pass; sampled first where a rollout is due."""
        if self._rollout is None:  # the start, or a resumed run: `global_step` says where in a rollout it is
            passes = self.args.micro_batches_per_rollout * self.args.num_ppo_epochs
            self._pass = self.state.global_step * self.args.gradient_accumulation_steps % passes
        if self._rollout is None or self._pass == len(self._schedule):
            if self._rollout is not None:
                self._pass = 0
            rollout = self._maker.make(self._actor_critic, inputs, self.state, self._metrics)
            if self.args.whiten_advantages:
                rollout = rollout.whitened(dist.group.WORLD if self.accelerator.num_processes > 1 else None)
            self._rollout = rollout
            self._schedule = self._plan(self._rollout)
        rows, normalizer = self._schedule[self._pass]
        self._pass += 1
        return self._rollout.select(rows), normalizer

    def _plan(self, rollout: Rollout) -> list[tuple[Tensor, Tensor]]:
        """Rows and normalizer of every forward-backward pass on a rollout.

        The normalizer counts over all passes and processes of one optimizer step, so that accumulation and data
        parallelism give the gradient of one big batch.
        """
        mask = rollout.completion_mask
        per_step = self.args.gradient_accumulation_steps
        plan = []
        for _ in range(self.args.num_ppo_epochs):
            order = torch.randperm(len(mask)).to(mask.device)
            for rows in order.chunk(self.args.num_mini_batches):
                normalizer = step_normalizer(mask[rows], self.args.aggregation)
                if self.args.aggregation != "token-sum":
                    normalizer = self.accelerator.reduce(normalizer, reduction="sum")
                plan += [(part, normalizer) for part in rows.chunk(per_step)]
        return plan

    def compute_loss(
        self,
        model: nn.Module,
        inputs: tuple[Rollout, Tensor],  # type: ignore[override]
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """PPO loss of one forward-backward pass.

        It is already divided by the count over the whole optimizer step. The trainer will divide by the number of
        passes, and DDP by the number of processes: both are undone here, and likewise for the statistics that are
        normalized like the loss and averaged when they are logged.
        """
        batch, normalizer = inputs
        loss, stats = model(batch, normalizer)
        passes = self.args.gradient_accumulation_steps * self.accelerator.num_processes
        tokens = stats.pop("tokens")
        for name in _MAXIMA:
            self._metrics.add_maximum(name, stats.pop(name))
        self._metrics.add({name: stats.pop(name) * passes for name in _NORMALIZED_STATS})
        self._metrics.add(stats, weight=tokens)
        loss = loss * passes
        return (loss, stats) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sample one completion for each prompt of the evaluation data and report rewards, KL and lengths."""
        rows = self.eval_dataset
        if eval_dataset is not None:
            rows = self._rows(eval_dataset, "eval_dataset", self.args, self.processing_class)
        if rows is None:
            raise ValueError("eval_dataset is None; it must be rows with a prompt")
        processes, rank, size = self.args.world_size, self.args.process_index, self.args.eval_batch_size
        own = [rows[index] for index in range(rank, len(rows), processes)] if len(rows) >= processes else list(rows)
        metrics = RunningMeans(self.args.device)
        for start in range(0, len(own), size):
            self._maker.make(self._actor_critic, own[start : start + size], self.state, metrics)
        result = {f"{metric_key_prefix}_{name}": value for name, value in metrics.collect(self.accelerator).items()}
        super().log(result)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, result)
        return result

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not defined for prompts."""
        raise ValueError("predict is not defined for prompts; it must be evaluate, or policy.generate")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what rollouts and losses reported since the last call."""
        super().log({**logs, **self._metrics.collect(self.accelerator)}, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The policy in `output_dir` as a plain Hugging Face model with its tokenizer; the value model below it."""
        folder = Path(output_dir or self.args.output_dir)
        parts: tuple[tuple[str, Any, Path], ...] = (
            ("policy.", self.policy, folder),
            ("value_model.model.", self.value_model.model, folder / _VALUE_FOLDER),
        )
        for prefix, module, target in parts:
            state = {
                name[len(prefix) :]: value for name, value in (state_dict or {}).items() if name.startswith(prefix)
            }
            module.save_pretrained(target, **({"state_dict": state} if state else {}))
        self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Undo `_save`."""
        folder = Path(resume_from_checkpoint)
        load_weights(self.policy, folder)
        load_weights(self.value_model.model, folder / _VALUE_FOLDER)

    def _load_best_model(self) -> None:
        """Load the best checkpoint, as `load_best_model_at_end` asks."""
        self._load_from_checkpoint(self.state.best_model_checkpoint)
