"""The token reward trainer: `transformers.Trainer` with the edited-token Bradley-Terry loss and its metrics."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from fgrl.data import PairCollator, pad_token_id
from fgrl.models.adapters import with_adapters
from fgrl.models.fit import check_vocabulary, context_length
from fgrl.models.loading import load_tokenizer
from fgrl.models.packing import check_packing
from fgrl.models.reward import TokenRewardModel
from fgrl.models.scalar import token_scalars
from fgrl.ops import edit_preference_loss
from fgrl.trainer.model_checks import (
    adapter_layers,
    check_peft_model,
    check_trainable,
    warn_of_half_precision,
)
from fgrl.trainer.reward_batch import Side, count_pairs, last_token, split_sides
from fgrl.trainer.reward_config import TokenRewardConfig
from fgrl.trainer.reward_data import encode_dataset
from fgrl.trainer.reward_metrics import RewardMetrics

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from transformers.trainer_utils import EvalLoopOutput


class TokenRewardTrainer(Trainer):
    """Train a token reward model on edited pairs (Xu et al., arXiv 2406.02756).

    The loss of a step is the mean over all its pairs, however they are spread over gradient accumulation and processes.
    A pair in which nothing was edited counts in that mean with a constant and no gradient (with `unchanged_weight`, its
    penalty has one); evaluation reports how many there are.

    Evaluation adds `pair_accuracy`, `margin`, `edit_auc`, `span_auc` (where rows have human error spans), `pairs` and
    `pairs_without_edits`: see `RewardMetrics`.

    Args:
        model: a name or path (causal LM or token classification), a `TokenRewardModel`, a token-classification model of
            transformers with one label, or a `PeftModel` of one.
        args: options.
        train_dataset: a path, a `datasets.Dataset` or an iterable of rows (see `fgrl.data.read_pairs`), or an encoded
            dataset of `fgrl.data`.
        eval_dataset: the same, or a dict of them.
        processing_class: the tokenizer; by default that of `model` where it is a name.
        data_collator: makes the batches; by default `fgrl.data.PairCollator`.
        callbacks: as in `Trainer`.
        optimizers: as in `Trainer`.
        peft_config: trains adapters and the head instead of all weights.

    Raises:
        ValueError: the backbone has no token-classification class, or cannot take the packed batches asked for.

    Example:
        >>> trainer = TokenRewardTrainer(
        ...     "HuggingFaceTB/SmolLM2-135M", TokenRewardConfig("reward"), train_dataset="edits.jsonl"
        ... )  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> trainer.reward_model.save_pretrained("reward")  # doctest: +SKIP
    """

    args: TokenRewardConfig
    loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole step

    def __init__(
        self,
        model: str | os.PathLike[str] | TokenRewardModel | PreTrainedModel,
        args: TokenRewardConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        args = args if args is not None else TokenRewardConfig("token-reward-model")
        if isinstance(model, (str, os.PathLike)):
            options = dict(args.model_init_kwargs or {})
            if args.dtype is not None:
                if "dtype" in options:
                    raise ValueError(
                        f"dtype is {args.dtype!r} and model_init_kwargs has one; it must be in one of them"
                    )
                options["dtype"] = args.dtype
            if processing_class is None:
                processing_class = load_tokenizer(model, gguf_file=options.get("gguf_file"))
            model = TokenRewardModel.from_pretrained(model, attn_implementation=args.attn_implementation, **options)
        elif args.dtype is not None:
            raise ValueError(f"dtype is {args.dtype!r} and model is in memory; it must be None, or model a name")
        elif not isinstance(model, TokenRewardModel):
            model = TokenRewardModel(model)
        inner = model.model
        if processing_class is not None:
            check_vocabulary(processing_class, inner)
        self._max_length = min(args.max_length, context_length(inner.config) or args.max_length)
        if peft_config is not None:
            if adapter_layers(inner):
                raise ValueError("model has adapters and peft_config is given; it must be one or the other")
            inner = with_adapters(inner, peft_config)
        check_peft_model(inner, "model")
        if train_dataset is not None:
            check_trainable(inner, "model")
            if args.dtype is None and "dtype" not in (args.model_init_kwargs or {}):
                warn_of_half_precision(inner, "model")
        if data_collator is None:
            pad = 0 if processing_class is None else pad_token_id(processing_class)
            data_collator = PairCollator(pad, packed=args.packed, pad_to_multiple_of=args.pad_to_multiple_of)
        self._metrics = RewardMetrics()
        super().__init__(
            model=inner,
            args=args,
            data_collator=data_collator,
            train_dataset=encode_dataset(train_dataset, processing_class, args, self._max_length, training=True),
            eval_dataset=encode_dataset(eval_dataset, processing_class, args, self._max_length),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True
        if args.packed:
            check_packing(self.model)

    @property
    def reward_model(self) -> TokenRewardModel:
        """The model as a `TokenRewardModel`. Its `save_pretrained` merges adapters; `save_model` writes them alone."""
        return TokenRewardModel(self.accelerator.unwrap_model(self.model))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As in `Trainer`; rows that are not encoded yet are encoded."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = encode_dataset(eval_dataset, self.processing_class, self.args, self._max_length)
        return super().get_eval_dataloader(eval_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of a step, and how many pairs they hold over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = torch.tensor(sum(map(count_pairs, batches)), device=device)
        return batches, self.accelerator.reduce(pairs, "sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch: its mean over `num_items_in_batch` pairs, or over its own.

        Returns:
            The loss, or with `return_outputs` `(loss, (margins [B], chosen Side, rejected Side))`.
        """
        packed = "cu_seqlens" in inputs
        rewards = token_scalars(
            model,
            inputs["input_ids"],
            None if packed else inputs["attention_mask"],
            inputs["position_ids"] if packed else None,
        )
        chosen, rejected = split_sides(rewards, inputs)
        loss, margins = self._loss(chosen, rejected)
        if num_items_in_batch is not None:  # gradients are averaged over processes: their number makes it a sum
            loss = loss * (len(margins) * self.accelerator.num_processes / num_items_in_batch)
        return (loss, (margins, chosen, rejected)) if return_outputs else loss

    def _loss(self, chosen: Side, rejected: Side) -> tuple[Tensor, Tensor]:
        """Mean loss and margins `[B]` of pairs."""
        edits, masks = (chosen.edits, rejected.edits), (chosen.mask, rejected.mask)
        if self.args.reward_level == "sequence":
            edits = masks = last_token(chosen.mask), last_token(rejected.mask)
        return edit_preference_loss(
            chosen.rewards,
            rejected.rewards,
            *edits,
            chosen_mask=masks[0],
            rejected_mask=masks[1],
            reduction=self.args.reduction,
            unchanged_weight=self.args.unchanged_weight,
            margin=self.args.margin,
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Any, Any]:
        """Loss of a batch; adds it to the metrics. Predictions are the rewards `[B, T]` of both sides, labels the codes
        1 (response token), 2 (edited) and 4 (in a human error span), added up."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, (margins, chosen, rejected) = self.compute_loss(model, inputs, return_outputs=True)
        # One pair at a time: in the last batch of several processes some only fill it up, and do not count.
        pairs = ([_row(side, row) for side in (chosen, rejected)] for row in range(len(margins)))
        losses = torch.stack([self._loss(*pair)[0] for pair in pairs])
        has_edits = (chosen.edits & chosen.mask).any(1) | (rejected.edits & rejected.mask).any(1)
        has_errors = inputs["has_errors"][len(margins) :]
        self._add_to_metrics(margins, losses, has_edits, has_errors, rejected)
        if prediction_loss_only:
            return loss.detach(), None, None
        return loss.detach(), (chosen.rewards, rejected.rewards), (_codes(chosen), _codes(rejected))

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As in `Trainer`, with the metrics of `RewardMetrics`."""
        self._metrics = RewardMetrics()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        for name, value in self._metrics.compute().items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As in `Trainer`, but for the pickle of the options: whoever gets a checkpoint unpickles nothing."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _add_to_metrics(
        self, margins: Tensor, losses: Tensor, has_edits: Tensor, has_errors: Tensor, rejected: Side
    ) -> None:
        """Gather a batch over all processes, without the pairs that only fill up the last one."""
        accelerator = self.accelerator
        rows = torch.stack([margins, losses, has_edits, has_errors], dim=1).float()  # [B, 4]
        tokens = accelerator.pad_across_processes(torch.stack([rejected.rewards, _codes(rejected).float()], 2), dim=1)
        rows, tokens = accelerator.gather_for_metrics((rows, tokens))
        codes = tokens[..., 1].to(torch.uint8)
        self._metrics.update(
            margins=rows[:, 0],
            losses=rows[:, 1],
            has_edits=rows[:, 2].bool(),
            rewards=tokens[..., 0],
            mask=codes & 1 != 0,
            edits=codes & 2 != 0,
            errors=codes & 4 != 0,
            has_errors=rows[:, 3].bool(),
        )


def _codes(side: Side) -> Tensor:
    return side.mask.to(torch.uint8) + 2 * side.edits + 4 * side.errors


def _row(side: Side, row: int) -> Side:
    return Side(*(field[row : row + 1] for field in side))
