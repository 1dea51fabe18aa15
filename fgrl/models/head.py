"""Last hidden states and LM head of a causal LM: what the `linear_*` ops take instead of logits."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn


class HiddenStates(NamedTuple):
    """`hidden [B, T, D]` with the logit scale applied, head `weight [V, D]`, `bias [V]` and logit soft-cap, or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float | None


def hidden_states_and_head(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> HiddenStates:
    """Run the decoder of a Hugging Face causal LM without its head.

    The model's logits are `softcap(hidden @ weight.T + bias)`: a family's logit scale (Cohere's `logit_scale`,
    Granite's `logits_scaling`) is already in `hidden`. LoRA on the head is merged into `weight`, `W + scaling * B A`,
    so that its gradient reaches A and B.

    Args:
        model: a causal LM, or a PEFT model of one.
        input_ids: `[B, T]` int64.
        attention_mask: `[B, T]`, 1 at real tokens.
        position_ids: `[B, T]`. Counted from `attention_mask` by default, so that padding may be on either side.
        **kwargs: passed to the decoder.

    Raises:
        ValueError: the model's head is neither a linear layer nor one with LoRA that can be merged: without DoRA, and
            while training without dropout.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    weight, bias = _head(model.get_output_embeddings())
    if attention_mask is not None and position_ids is None:
        position_ids = attention_mask.long().cumsum(-1).sub(1).clamp(min=0)
    outputs = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False, **kwargs
    )
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    hidden = outputs.last_hidden_state
    if scale != 1.0:
        hidden = hidden * scale
    return HiddenStates(hidden, weight, bias, getattr(config, "final_logit_softcapping", None))


def _head(head: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of an output head, with what PEFT has put on it."""
    if hasattr(head, "modules_to_save"):  # trained whole, as a copy
        head = head.original_module if head.disable_adapters else head.modules_to_save[head.active_adapter]
    if isinstance(head, nn.Linear):
        return head.weight, head.bias
    base = getattr(head, "base_layer", None)
    if not isinstance(base, nn.Linear) or not hasattr(head, "lora_A"):
        kind = type(head).__name__ + ("" if base is None else " with adapters that are not LoRA")
        raise ValueError(f"model has an output head of type {kind}; it must be a linear layer, or one with LoRA")
    weight, bias = base.weight, base.bias
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
