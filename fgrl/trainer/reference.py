"""The reference model of the KL."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from fgrl.trainer.model_checks import adapter_layers, peft_configs

# Initializations of LoRA that change the adapted weights: without the adapter, they are not those of the base.
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


def make_reference(policy: Any, kind: str, dtype: torch.dtype | None = None) -> nn.Module:
    """A frozen model that no update of `policy` reaches.

    Args:
        policy: a causal LM, with adapters of PEFT or without.
        kind: "start", the policy as it is now, adapters included; "base", the same without its adapters.
        dtype: of the reference; None for that of the policy.

    Returns:
        A copy. It shares with the policy the parameters that are not trained, unless `dtype` is given: the reference of
        a policy with adapters costs the memory of the adapters.

    Raises:
        ValueError: `kind` is "base" and the policy has no adapters, or their base cannot be had.
    """
    if kind == "base":
        _check_base(policy)
    shared = (
        {} if dtype else {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
    )
    reference = copy.deepcopy(policy, shared)  # type: ignore[arg-type]
    if kind == "base":
        _disable_adapters(reference)
    if dtype is not None:
        reference.to(dtype)
    return reference.requires_grad_(False).eval()  # type: ignore[no-any-return]


def _check_base(policy: Any) -> None:
    if not adapter_layers(policy):
        raise ValueError("reference is 'base' and the policy has no adapters of PEFT; it must be 'start'")
    for config in peft_configs(policy):
        if getattr(config, "bias", "none") != "none":
            raise ValueError(
                f"reference is 'base' and the adapters train biases of the base (bias={config.bias!r}); it must be "
                "'start', or ref_model the base itself"
            )
        init = getattr(config, "init_lora_weights", None)
        if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
            raise ValueError(
                f"reference is 'base' and the adapters changed the weights of the base (init_lora_weights={init!r}); "
                "it must be 'start', or ref_model the base itself"
            )


def _disable_adapters(model: nn.Module) -> None:
    for layer in adapter_layers(model):
        layer.enable_adapters(False)
