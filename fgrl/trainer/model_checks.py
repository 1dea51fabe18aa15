"""Checks of the models of a training run: what is trained can learn and be saved, what only scores is apart from it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fgrl.models.adapters import unwrapped
from fgrl.models.probe import input_device, ordinary_ids, rounding, undisturbed

_HALVES = (torch.bfloat16, torch.float16)
_CAUSAL_LM = "it must be a causal language model"


def check_causal_lm(model: Any, name: str) -> None:
    """Raise ValueError where `model` is no causal LM: it cannot generate, has an encoder, or sees later tokens.

    The last is asked of the model itself: a decoder such as RoBERTa's attends to both sides unless its configuration
    says `is_decoder`, and its log-probabilities would then be those of tokens it has seen.
    """
    inner = unwrapped(model)
    if getattr(inner.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is a {type(inner).__name__}, an encoder and a decoder; {_CAUSAL_LM}")
    if not getattr(inner, "can_generate", lambda: hasattr(inner, "generate"))():
        raise ValueError(f"{name} is a {type(inner).__name__}, which cannot generate; {_CAUSAL_LM}")
    first, second, third, other = ordinary_ids(inner, 4)
    ids = torch.tensor([[first, second, third], [first, second, other]], device=input_device(inner))
    with undisturbed(model):
        logits = model(input_ids=ids).logits
    one, changed = logits[:, :-1].double()
    if (one - changed).abs().max() > 8 * rounding(logits, *model.parameters()) * one.abs().max():
        raise ValueError(
            f"{name} is a {type(inner).__name__} whose logits depend on later tokens; it must attend to earlier ones "
            "only (is_decoder=True in its configuration)"
        )


def check_trainable(model: Any, name: str) -> None:
    """Raise ValueError where training `model` would change nothing, or not be saved, without a word.

    Args:
        model: a Hugging Face model, with adapters of PEFT or without.
        name: what the error message calls it.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ValueError(f"{name} is a {type(model).__name__}; it must be the model inside it: the trainer wraps it")
    if any(getattr(config, "is_prompt_learning", False) for config in peft_configs(model)):
        raise ValueError(f"{name} has soft prompts (prompt learning); it must have adapters of weights, such as LoRA")
    layers = adapter_layers(model)
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ValueError(
            f"{name} has adapters merged into its weights; it must have them unmerged to train them: call "
            "unmerge_adapter()"
        )
    if layers and not peft_configs(model):
        raise ValueError(
            f"{name} has adapters inside a submodule; it must have them as a whole, for them to be saved: use "
            "peft.get_peft_model"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        adapters = peft_configs(model) or layers
        advice = "load its adapters with is_trainable=True" if adapters else "call requires_grad_() on it"
        raise ValueError(f"{name} has no trainable parameters; it must have some: {advice}")


def check_peft_model(model: Any, name: str) -> None:
    """Raise ValueError where `model` has adapters that its `save_pretrained` would write in a form nothing can read."""
    if adapter_layers(model) and not hasattr(model, "get_base_model"):
        raise ValueError(f"{name} has adapters but is no PeftModel; it must be one, for its adapters to be saved")


def check_apart(name: str, module: nn.Module, trained: Iterable[Tensor]) -> None:
    """Raise ValueError where `module`, which only scores, holds memory of a parameter that is trained.

    Parameters are compared by their storage: `load_state_dict(..., assign=True)` and views make new parameters of old
    memory.
    """
    if _storages(module.parameters()) & _storages(trained):
        raise ValueError(f"{name} shares weights with the policy or the value model; it must be a copy")


def trained_parameters(*models: nn.Module) -> list[nn.Parameter]:
    """The parameters of `models` that require a gradient."""
    return [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]


def warn_of_half_precision(model: nn.Module, name: str) -> None:
    """Warn where the parameters to train are in half precision."""
    halves = {parameter.dtype for parameter in trained_parameters(model)}.intersection(_HALVES)
    if halves:
        warnings.warn(
            f"{name} has weights to train in {halves.pop()}: most updates at the learning rates of fine-tuning are too "
            "small to change them; load it in float32, and set bf16=True for mixed precision",
            stacklevel=4,
        )


def adapter_layers(model: nn.Module) -> list[Any]:
    """The modules of PEFT in `model`, whichever way they came there."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper
    except ImportError:
        return []
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def peft_configs(model: Any) -> list[Any]:
    """The configurations of the adapters that `model` knows of."""
    configs = getattr(model, "peft_config", None) or {}
    return list(configs.values()) if isinstance(configs, dict) else [configs]


def _storages(parameters: Iterable[Tensor]) -> set[int]:
    """Addresses of the memory of parameters; those without memory (on "meta", or sharded away) have none."""
    addresses = {parameter.untyped_storage().data_ptr() for parameter in parameters if parameter.device.type != "meta"}
    return addresses - {0}
