"""Checks of options: what a trainer would ignore, or what would make its numbers wrong, is refused with a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from fgrl.models.loading import resolve_dtype

# option -> (the values that work, why others do not)
Refusals = Mapping[str, tuple[tuple[Any, ...], str]]

REFUSED: Refusals = {
    "label_smoothing_factor": ((0.0,), "the loss has no labels that could be smoothed"),
    "bf16_full_eval": ((False,), "an evaluation would round the weights that are trained and saved afterwards"),
    "fp16_full_eval": ((False,), "an evaluation would round the weights that are trained and saved afterwards"),
    "parallelism_config": ((None,), "neither the models nor their sequences are split over devices"),
}
REFUSED_ACCELERATE: Refusals = {
    "dispatch_batches": ((None, False), "batches made by one process would be cut where they must not be"),
}


def check_options(args: TrainingArguments, refused: Refusals, refused_accelerate: Refusals) -> None:
    """Raise ValueError for an option that the trainer, or the optimizer, cannot honour.

    Args:
        args: the options, after their own `__post_init__`.
        refused: options of `args`, next to those that both trainers refuse.
        refused_accelerate: options of `args.accelerator_config`, likewise.
    """
    _check_numbers(args)
    for name, (allowed, reason) in {**REFUSED, **refused}.items():
        _check(name, getattr(args, name, allowed[0]), allowed, reason)
    for name, (allowed, reason) in {**REFUSED_ACCELERATE, **refused_accelerate}.items():
        _check(f"accelerator_config.{name}", getattr(args.accelerator_config, name, allowed[0]), allowed, reason)
    steps = (args.accelerator_config.gradient_accumulation_kwargs or {}).get("num_steps")
    if steps not in (None, args.gradient_accumulation_steps):
        raise ValueError(
            f"accelerator_config.gradient_accumulation_kwargs has num_steps={steps}; it must be left out: set "
            "gradient_accumulation_steps"
        )


def _check_numbers(args: TrainingArguments) -> None:
    """A NaN passes every comparison of a range; what AdamW cannot use, it would refuse with a sentence of its own."""
    for name, value in vars(args).items():
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name} is nan; it must be a number")
    for name in ("learning_rate", "weight_decay", "adam_epsilon"):
        if not 0 <= getattr(args, name) < math.inf:
            raise ValueError(f"{name} is {getattr(args, name)}; it must be a finite number of at least 0")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(args, name) < 1:
            raise ValueError(f"{name} is {getattr(args, name)}; it must be at least 0 and below 1")


def check_dtype(name: str, dtype: str | None) -> None:
    """Raise ValueError, naming the option, unless `dtype` is None, "auto" or the name of a floating-point dtype."""
    try:
        resolve_dtype(dtype, trainable=False)
    except ValueError:
        raise ValueError(
            f'{name} is {dtype!r}; it must be "auto" or the name of a floating-point dtype, such as "bfloat16"'
        ) from None


def _check(name: str, value: Any, allowed: tuple[Any, ...], reason: str) -> None:
    # An option that is off may be spelled None, False, 0, "" or as an empty list or dictionary.
    if not (value in allowed or (not value and not allowed[0])):
        raise ValueError(f"{name} is {value!r}; it must be {allowed[0]!r}: {reason}")
