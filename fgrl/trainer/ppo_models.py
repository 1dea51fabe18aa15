"""The models of PPO, from what the trainer was given: loaded where they are names, checked, and with adapters."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from fgrl.models import ValueModel, load_causal_lm
from fgrl.models.adapters import with_adapters
from fgrl.models.fit import check_vocabulary, context_length
from fgrl.models.loading import set_dropout
from fgrl.trainer.ppo_config import FineGrainedPPOConfig
from fgrl.trainer.reward_sources import RewardSource

_UNSUPPORTED = {
    "deepspeed": "DeepSpeed",
    "fsdp": "FSDP",
    "neftune_noise_alpha": "NEFTune",
    "auto_find_batch_size": "auto_find_batch_size",
}


class PPOModels(NamedTuple):
    """`reference` is None where no KL is asked for, and where it is the policy without its adapters."""

    policy: Any
    value: ValueModel
    reference: nn.Module | None


def prepare_models(
    model: Any,
    ref_model: nn.Module | None,
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
    if not isinstance(model, nn.Module):
        model = load_causal_lm(model, **(args.model_init_kwargs or {}))  # type: ignore[arg-type]
    value = _value_model(value_model, model)
    uses_reference = bool(args.kl_coef or args.loss_kl_coef)
    if uses_reference and ref_model is not None and peft_config is not None:
        raise ValueError("ref_model is given with peft_config; the reference is then the policy without adapters")
    if peft_config is not None:
        from peft import get_peft_model

        model, value = get_peft_model(model, peft_config), ValueModel(with_adapters(value.model, peft_config))
    elif uses_reference and ref_model is None and not hasattr(model, "peft_config"):
        ref_model = copy.deepcopy(model)
    models = PPOModels(model, value, ref_model if uses_reference else None)
    _check_models(models, sources, args, tokenizer)
    if args.disable_dropout:
        for trained in (models.policy, models.value):
            set_dropout(trained, 0.0)
    return models


def check_supported(args: FineGrainedPPOConfig, peft_config: Any) -> None:
    """Raise ValueError, in one sentence, for what would otherwise fail in the middle of training."""
    for option, name in _UNSUPPORTED.items():
        if getattr(args, option, None):
            raise ValueError(f"{option} is set; FineGrainedPPOTrainer does not support {name}")
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs; FineGrainedPPOTrainer needs a process a GPU: start it with "
            "torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES"
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

        set_peft_model_state_dict(module, load_peft_weights(str(folder)))
    else:
        module.load_state_dict(type(module).from_pretrained(folder).state_dict())


def _value_model(value_model: Any, policy: Any) -> ValueModel:
    if isinstance(value_model, ValueModel):
        return value_model
    if isinstance(value_model, nn.Module):
        return ValueModel(value_model)  # type: ignore[arg-type]
    if value_model is not None:
        return ValueModel.from_pretrained(value_model)
    if hasattr(policy, "peft_config"):
        raise ValueError("value_model is None and model has adapters already; pass a value_model, or use peft_config")
    return ValueModel.from_backbone(policy)


def _check_models(
    models: PPOModels, sources: list[RewardSource], args: FineGrainedPPOConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    trained = {id(parameter) for model in models[:2] for parameter in model.parameters()}
    fixed: dict[str, nn.Module] = {
        source.name: source.source for source in sources if isinstance(source.source, nn.Module)
    }
    if models.reference is not None:
        fixed["ref_model"] = models.reference
    for name, module in fixed.items():
        if any(id(parameter) in trained for parameter in module.parameters()):
            raise ValueError(f"{name} shares weights with the policy or the value model; it must be a copy")
    for name, module in {"model": models.policy, "value_model": models.value.model, **fixed}.items():
        inner = getattr(module, "model", module) if not hasattr(module, "get_input_embeddings") else module
        if hasattr(inner, "get_input_embeddings"):
            try:
                check_vocabulary(tokenizer, inner)
            except ValueError as error:
                raise ValueError(f"{name} does not fit processing_class: {error}") from None
    halves = {p.dtype for p in models.policy.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    if halves:
        warnings.warn(
            f"the policy's weights are {halves.pop()}: most updates at the learning rates of PPO are too small to "
            "change them; load it in float32 and set bf16=True for mixed precision",
            stacklevel=4,
        )
