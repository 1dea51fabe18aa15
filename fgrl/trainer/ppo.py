"""`FineGrainedPPOTrainer`: PPO with a reward at every token, on `transformers.Trainer`."""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from fgrl.data import PromptEncoder, read_prompts
from fgrl.models import ValueModel
from fgrl.models.adapters import with_adapters
from fgrl.models.loading import set_dropout
from fgrl.trainer.actor_critic import ActorCritic, step_normalizer
from fgrl.trainer.ppo_config import FineGrainedPPOConfig
from fgrl.trainer.ppo_data import RolloutSampler, SetSamplerEpoch, as_rows
from fgrl.trainer.reward_sources import check_same_vocabulary, reward_sources
from fgrl.trainer.rollout import Rollout
from fgrl.trainer.rollout_maker import RolloutMaker

_VALUE_FOLDER = "value_model"
_NORMALIZED_STATS = ("policy_loss", "value_loss", "kl", "entropy")


class FineGrainedPPOTrainer(Trainer):
    """PPO whose reward, advantage and loss are per token (Xu et al., arXiv 2406.02756).

    Each rollout samples one completion a prompt, scores every token of it with the reward sources, takes
    `fgrl.ops.token_advantages`, and trains policy and value model for `num_ppo_epochs` passes with
    `fgrl.ops.linear_ppo_loss` and `fgrl.ops.value_loss`. With `reward_level="sequence"` only the last token's reward
    is kept: ordinary PPO, by the same code. Checkpoints hold the policy as a plain Hugging Face model, and the value
    model in the folder `value_model`.

    Args:
        model: the policy: a causal LM, or a folder or name to load it from.
        ref_model: the model the KL is taken against. Default: a frozen copy of the policy, or, with `peft_config`, the
            policy without its adapters. None is loaded where neither `kl_coef` nor `loss_kl_coef` is set.
        reward_model: a `TokenRewardModel`, a token-classification model, a function as in TRL
            (`fn(prompts=, completions=, completion_ids=, **columns)` returning a number, or a list of one number a
            token, for each completion), or a list of these, which add up.
        value_model: default: a copy of the policy's backbone with a new head.
        args: the options.
        processing_class: the policy's tokenizer.
        reward_processing_class: the reward model's tokenizer, where it is another object: its vocabulary must be the
            policy's.
        train_dataset: rows with `prompt` (text or chat messages) or `prompt_ids` (token ids): a path that
            `fgrl.data.read_prompts` reads, a `datasets.Dataset`, or a list of dicts. Other columns go to the reward
            functions.
        eval_dataset: likewise; `evaluate` samples from it and reports the rewards.
        callbacks: as in `transformers.Trainer`.
        optimizers: as in `transformers.Trainer`.
        peft_config: trains adapters of the policy and of the value model instead of all weights.

    Raises:
        ValueError: an argument that does not fit, a reward model with another vocabulary included.
    """

    args: FineGrainedPPOConfig

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str],
        ref_model: nn.Module | None = None,
        reward_model: Any = None,
        value_model: ValueModel | None = None,
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
            raise ValueError("processing_class is None; it must be the policy's tokenizer")
        if reward_processing_class is not None:
            check_same_vocabulary(processing_class, reward_processing_class)
        if not isinstance(model, nn.Module):
            model = AutoModelForCausalLM.from_pretrained(model)
        train_rows, eval_rows = _rows(train_dataset, "train_dataset"), _rows(eval_dataset, "eval_dataset")
        if train_rows is None:
            raise ValueError("train_dataset is None; it must be rows with a prompt")

        uses_reference = bool(args.kl_coef or args.loss_kl_coef)
        if value_model is None:
            value_model = ValueModel.from_backbone(model)
        if peft_config is not None:
            if uses_reference and ref_model is not None:
                raise ValueError(
                    "ref_model is given with peft_config; the reference is then the policy without adapters"
                )
            model, value_model = _with_adapters(model, value_model, peft_config)
        elif uses_reference and ref_model is None:
            ref_model = copy.deepcopy(model)
        if args.disable_dropout:
            for module in (model, value_model):
                set_dropout(module, 0.0)

        self._sources = reward_sources(reward_model, args.reward_weights)
        self._sampler = RolloutSampler(
            len(train_rows),
            args.rollout_batch_size * args.world_size,
            args.micro_batches_per_rollout * args.num_ppo_epochs,
            shuffle=True,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )
        if args.total_episodes is not None:
            rollouts = -(-args.total_episodes // (args.rollout_batch_size * args.world_size))
            args.max_steps = rollouts * args.num_ppo_epochs * args.num_mini_batches
        args.remove_unused_columns = False

        super().__init__(
            model=ActorCritic(model, value_model, args),
            args=args,
            data_collator=as_rows,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.add_callback(SetSamplerEpoch(self._sampler))
        for frozen in (ref_model, *(source.source for source in self._sources)):
            if isinstance(frozen, nn.Module):
                frozen.requires_grad_(False).eval().to(args.device)
        self._maker = RolloutMaker(
            args=args,
            processing_class=processing_class,
            encoder=PromptEncoder(processing_class, max_length=args.max_prompt_length),
            sources=self._sources,
            ref_model=ref_model,
            uses_reference=uses_reference,
        )
        self._micro_step = 0
        self._rollout: Rollout | None = None
        self._schedule: list[tuple[Tensor, Tensor]] = []
        self._metrics: dict[str, list[float]] = defaultdict(list)

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
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.args.value_learning_rate is not None:
            of_value = {id(parameter) for parameter in self.value_model.parameters()}
            for group in list(optimizer.param_groups):
                values = [parameter for parameter in group["params"] if id(parameter) in of_value]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in of_value]
                if values:
                    optimizer.add_param_group({**group, "params": values, "lr": self.args.value_learning_rate})
        return optimizer

    def _prepare_inputs(self, inputs: list[dict[str, Any]]) -> tuple[Rollout, Tensor]:  # type: ignore[override]
        """Sequences and normalizer of the next forward-backward pass; sampled first where a rollout is due."""
        passes = len(self._schedule)
        if not passes or self._micro_step % passes == 0:
            self._rollout, metrics = self._maker.make(self._actor_critic, inputs, self.accelerator)
            self._schedule = self._plan(self._rollout)
            self._record(metrics)
        assert self._rollout is not None
        rows, normalizer = self._schedule[self._micro_step % len(self._schedule)]
        self._micro_step += 1
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
        self._record({name: value * (passes if name in _NORMALIZED_STATS else 1) for name, value in stats.items()})
        loss = loss * passes
        return (loss, stats) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sample one completion for each prompt of the evaluation data and report rewards, KL and lengths."""
        rows = _rows(eval_dataset, "eval_dataset") if eval_dataset is not None else self.eval_dataset
        if rows is None:
            raise ValueError("eval_dataset is None; evaluate needs rows with a prompt")
        totals: dict[str, float] = defaultdict(float)
        count = 0
        self.model.eval()
        for batch in self.get_eval_dataloader(rows):
            _, metrics = self._maker.make(self._actor_critic, batch, self.accelerator)
            count += len(batch)
            for name, value in metrics.items():
                totals[name] += float(value) * len(batch)
        result = {f"{metric_key_prefix}_{name}": value / max(count, 1) for name, value in totals.items()}
        self.log(result)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, result)
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last call of what rollouts and losses reported."""
        if not any(name.startswith("eval_") for name in logs):
            local = {name: sum(values) / len(values) for name, values in self._metrics.items()}
            self._metrics.clear()
            if local:
                means = torch.tensor(list(local.values()), dtype=torch.float64, device=self.args.device)
                logs = {**logs, **dict(zip(local, self.accelerator.reduce(means, "mean").tolist(), strict=True))}
        super().log(logs, start_time)

    def _record(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self._metrics[name].append(float(value))

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
        _load_weights(self.policy, folder)
        _load_weights(self.value_model.model, folder / _VALUE_FOLDER)


def _rows(dataset: Any, name: str) -> Any:
    """`dataset` as rows with a length: rows with `prompt_ids` as they are, others read by `read_prompts`."""
    if dataset is None:
        return None
    is_sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, str)
    is_tokenized = is_sized and len(dataset) > 0 and "prompt_ids" in dataset[0]
    rows = dataset if is_tokenized else list(read_prompts(dataset))
    if not len(rows):
        raise ValueError(f"{name} is empty; it must have at least one prompt")
    return rows


def _with_adapters(model: Any, value_model: ValueModel, peft_config: Any) -> tuple[Any, ValueModel]:
    from peft import get_peft_model

    return get_peft_model(model, peft_config), ValueModel(with_adapters(value_model.model, peft_config))


def _load_weights(module: Any, folder: Path) -> None:
    """Load what `module.save_pretrained(folder)` wrote into `module`."""
    if hasattr(module, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(module, load_peft_weights(str(folder)))
    else:
        module.load_state_dict(type(module).from_pretrained(folder).state_dict())
