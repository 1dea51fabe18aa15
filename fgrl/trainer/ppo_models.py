"""The models of PPO, from what the trainer was given: loaded where they are names, checked, and with adapters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from fgrl.models import TokenRewardModel, ValueModel, load_causal_lm, load_tokenizer
from fgrl.models.adapters import unwrapped, with_adapters
from fgrl.models.fit import check_scorer, check_vocabulary, context_length, vocabulary_rows
from fgrl.models.loading import resolve_dtype, set_dropout
from fgrl.trainer.model_checks import (
    adapter_layers,
    check_apart,
    check_causal_lm,
    check_peft_model,
    check_trainable,
    trained_parameters,
    warn_of_half_precision,
)
from fgrl.trainer.ppo_config import FineGrainedPPOConfig
from fgrl.trainer.reference import make_reference
from fgrl.trainer.reward_sources import RewardSource, check_same_vocabulary
from fgrl.trainer.teacher import TeacherReward


class PPOModels(NamedTuple):
    """`reference` is None where no KL is asked for; `scorers` are all models but the policy, by their names."""

    policy: Any
    value: ValueModel
    reference: nn.Module | None
    scorers: dict[str, nn.Module]


def prepare_models(
    model: Any,
    ref_model: Any,
    value_model: Any,
    sources: list[RewardSource],
    args: FineGrainedPPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: Any,
) -> PPOModels:
    """Fill in the models that were not given, and check that all of them fit together; see `FineGrainedPPOTrainer`.

    Raises:
        ValueError: a model that does not fit, or a way of training that PPO does not support.
    """
    check_supported(args, peft_config)
    policy = _policy(model, args)
    check_causal_lm(policy, "model")
    if peft_config is not None and adapter_layers(policy):
        raise ValueError("model has adapters and peft_config is given; it must be one or the other")
    value = _value_model(value_model, policy, args)
    if peft_config is not None:
        if adapter_layers(value):
            raise ValueError("value_model has adapters and peft_config is given; it must be one or the other")
        policy, value = _adapted(policy, peft_config, args), ValueModel(with_adapters(value.model, peft_config))
    _check_trained(policy, value, args)
    if adapter_layers(policy) and not hasattr(policy, "get_base_model"):
        policy._hf_peft_config_loaded = True  # inject_adapter_in_model: now saved as what add_adapter adds
    if args.disable_dropout:
        for trained in (policy, value):
            set_dropout(trained, 0.0)
    reference = _reference(ref_model, policy, args) if args.kl_coef or args.loss_kl_coef else None
    scorers: dict[str, nn.Module] = (
        {"value_model": value, "ref_model": reference} if reference else {"value_model": value}
    )
    for number, source in enumerate(sources):
        if isinstance(source.source, nn.Module):
            scorers["reward_model" if len(sources) == 1 else f"reward_model[{number}]"] = source.source
    trained_weights = trained_parameters(policy, value)
    for name, scorer in scorers.items():
        if name != "value_model":
            check_apart(name, scorer, trained_weights)
    try:
        check_vocabulary(tokenizer, policy)
    except ValueError as error:
        raise ValueError(f"model cannot be trained with processing_class: {error}") from None
    models = PPOModels(policy, value, reference, scorers)
    check_scorers(models, tokenizer, max_length=1)  # the vocabulary alone: how long sequences get, the prompts will say
    return models


def load_reward_models(reward_model: Any, args: FineGrainedPPOConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    """`reward_model`, or the list of them, with names in place of models loaded.

    Raises:
        ValueError: a model whose tokenizer has another vocabulary than the policy's.
    """
    if isinstance(reward_model, list | tuple):
        return [load_reward_models(item, args, tokenizer) for item in reward_model]
    if isinstance(reward_model, TeacherReward) and reward_model.processing_class is not None:
        check_same_vocabulary(tokenizer, reward_model.processing_class)
    if not isinstance(reward_model, str | os.PathLike):
        return reward_model
    check_same_vocabulary(tokenizer, load_tokenizer(reward_model))
    return TokenRewardModel.from_pretrained(reward_model, trainable=False, dtype=args.reward_dtype)


def check_scorers(models: PPOModels, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raise ValueError where a scorer lacks a token of the tokenizer, or the context for `max_length` tokens."""
    for name, scorer in models.scorers.items():
        if hasattr(unwrapped(scorer), "config"):
            check_scorer(name, scorer, models.policy, tokenizer=tokenizer, max_length=max_length)


def common_vocabulary(models: PPOModels) -> int | None:
    """Number of token ids that all models have a vocabulary row for; None where no model says."""
    rows = [vocabulary_rows(model) for model in (models.policy, *models.scorers.values())]
    return min((number for number in rows if number is not None), default=None)


def _policy(model: Any, args: FineGrainedPPOConfig) -> Any:
    if isinstance(model, nn.Module):
        _refuse_dtype("model", "dtype", args)
        return model
    options: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type]
    if args.dtype is not None:
        if "dtype" in options:
            raise ValueError(f"dtype is {args.dtype!r} and model_init_kwargs has one; it must be in one of them")
        options["dtype"] = args.dtype
    return load_causal_lm(model, **options)


def _value_model(value_model: Any, policy: Any, args: FineGrainedPPOConfig) -> ValueModel:
    if isinstance(value_model, nn.Module):
        _refuse_dtype("value_model", "value_dtype", args)
        return value_model if isinstance(value_model, ValueModel) else ValueModel(value_model)  # type: ignore[arg-type]
    if value_model is not None:
        return ValueModel.from_pretrained(value_model, dtype=args.value_dtype)
    if adapter_layers(policy):
        raise ValueError("value_model is None and model has adapters already; it must be given, or peft_config used")
    return ValueModel.from_backbone(policy, dtype=args.value_dtype)


def _reference(ref_model: Any, policy: Any, args: FineGrainedPPOConfig) -> nn.Module:
    if isinstance(ref_model, nn.Module):
        _refuse_dtype("ref_model", "ref_dtype", args)
        check_causal_lm(ref_model, "ref_model")
        return ref_model
    if ref_model is not None:
        return load_causal_lm(ref_model, trainable=False, dtype=args.ref_dtype)
    dtype = resolve_dtype(args.ref_dtype, trainable=False)
    return make_reference(policy, args.reference, dtype if isinstance(dtype, torch.dtype) else None)


def _refuse_dtype(model: str, option: str, args: FineGrainedPPOConfig) -> None:
    """A model in memory has a dtype already; to cast it would change what its owner holds."""
    if getattr(args, option) is not None:
        raise ValueError(
            f"{option} is {getattr(args, option)!r} and {model} is in memory; it must be None, or {model} a name"
        )


def _check_trained(policy: Any, value: ValueModel, args: FineGrainedPPOConfig) -> None:
    check_trainable(policy, "model")
    check_peft_model(value.model, "value_model")
    check_trainable(value.model, "value_model")
    asked = args.dtype or (args.model_init_kwargs or {}).get("dtype")  # type: ignore[union-attr]
    for name, model, dtype in (("model", policy, asked), ("value_model", value, args.value_dtype)):
        if dtype is None:
            warn_of_half_precision(model, name)


def _adapted(model: Any, peft_config: Any, args: FineGrainedPPOConfig) -> Any:
    """`model` with new adapters; ValueError where their initialization takes the base away that `args` asks for."""
    from peft import get_peft_model

    before = _fingerprint(model) if args.reference == "base" else {}
    adapted = get_peft_model(model, peft_config)
    if before.items() - _fingerprint(adapted).items():
        raise ValueError(
            "reference is 'base' and peft_config changes the weights that it adapts "
            f"(init_lora_weights={getattr(peft_config, 'init_lora_weights', None)!r}); it must be 'start', or "
            "ref_model the base itself"
        )
    return adapted


def _fingerprint(model: nn.Module) -> dict[int, float]:
    return {id(parameter): float(parameter.detach().abs().sum(dtype=torch.float64)) for parameter in model.parameters()}


def check_supported(args: FineGrainedPPOConfig, peft_config: Any) -> None:
    """Raise ValueError, in one sentence, for what would otherwise fail in the middle of training."""
    if args.n_gpu > 1:
        raise ValueError(
            f"n_gpu is {args.n_gpu}; it must be 1, a process for each GPU: start it with torchrun or accelerate "
            "launch, or set CUDA_VISIBLE_DEVICES"
        )
    if getattr(peft_config, "is_prompt_learning", False):
        raise ValueError(
            f"peft_config is a {type(peft_config).__name__}; it must adapt weights, as LoRA does: soft prompts are not "
            "supported"
        )


def longest_prompt(policy: Any, args: FineGrainedPPOConfig) -> int:
    """`max_prompt_length`, or what `max_completion_length` leaves of the policy's context where that is shorter.

    Raises:
        ValueError: it leaves nothing.
    """
    context = context_length(policy.config)
    if context is None:
        return args.max_prompt_length
    if args.max_completion_length >= context:
        raise ValueError(
            f"max_completion_length is {args.max_completion_length}; it must leave room for a prompt in the policy's "
            f"context of {context} tokens"
        )
    return min(args.max_prompt_length, context - args.max_completion_length)


def load_weights(module: Any, folder: Path) -> None:
    """Load what `module.save_pretrained(folder)` wrote into `module`."""
    if hasattr(module, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        for adapter in module.peft_config:  # PEFT saves an adapter that is not called "default" in a folder of its own
            source = folder / adapter if (folder / adapter).is_dir() else folder
            set_peft_model_state_dict(module, load_peft_weights(str(source)), adapter_name=adapter)
    else:
        module.load_state_dict(type(module).from_pretrained(folder).state_dict())
