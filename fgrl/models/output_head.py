"""Weight and bias of an output head, with what PEFT has put on it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def output_head(head: Any) -> tuple[Tensor, Tensor | None]:
    """`weight [V, D]` and `bias [V]` of a linear head; LoRA is merged in, with its gradient.

    Raises:
        ValueError: the head is no linear layer, has adapters that cannot be merged, or its weight is not in memory.
    """
    if hasattr(head, "modules_to_save"):  # trained whole, as a copy
        head = head.original_module if head.disable_adapters else head.modules_to_save[head.active_adapter]
    base = head if isinstance(head, nn.Linear) else getattr(head, "base_layer", None)
    if not isinstance(base, nn.Linear) or not (base is head or hasattr(head, "lora_A")):
        kind = type(head).__name__ + ("" if base is None else " with adapters that are not LoRA")
        raise ValueError(f"model has an output head of type {kind}; it must be a linear layer, or one with LoRA")
    weight, bias = base.weight, base.bias
    whole = weight.shape == (base.out_features, base.in_features) and not hasattr(weight, "full_tensor")  # a DTensor
    if weight.is_meta or not weight.is_floating_point() or not whole:
        raise ValueError(
            f"model has an output head with weight {list(weight.shape)}, {weight.dtype} on {weight.device}; it must be "
            "whole and of floating point, not quantised, sharded or offloaded"
        )
    if base is head:
        return weight, bias
    active = (
        [] if head.merged or head.disable_adapters else [name for name in head.active_adapters if name in head.lora_A]
    )
    for name in active:
        variant = _obstacle_to_merging(head, name)
        if variant is not None:
            raise ValueError(f"model has an output head whose adapter {name!r} has {variant}; it must be plain LoRA")
        weight = weight + head.get_delta_weight(name)
    return weight, bias


def _obstacle_to_merging(head: Any, name: str) -> str | None:
    """What the logits of a LoRA layer depend on besides one merged weight."""
    if head.lora_variant.get(name) is not None:
        return f"{type(head.lora_variant[name]).__name__} (such as DoRA)"
    if head.lora_B[name].bias is not None:
        return "a bias"
    dropout = head.lora_dropout[name]
    if isinstance(dropout, nn.Dropout) and dropout.p > 0 and head.training:
        return f"lora_dropout {dropout.p} while training"
    return None
