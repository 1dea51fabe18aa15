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
    Granite's `logits_scaling`) is already in `hidden`.

    Args:
        model: a causal LM, or a PEFT model of one.
        input_ids: `[B, T]` int64.
        attention_mask: `[B, T]`, 1 at real tokens.
        position_ids: `[B, T]`. Counted from `attention_mask` by default, so that padding may be on either side.
        **kwargs: passed to the decoder.

    Raises:
        ValueError: the model's head is not a linear layer, or carries adapters of its own.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        kind = type(head).__name__ + (" with adapters of its own" if hasattr(head, "base_layer") else "")
        raise ValueError(f"model has an output head of type {kind}; it must be a plain linear layer")
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
    return HiddenStates(hidden, head.weight, head.bias, getattr(config, "final_logit_softcapping", None))
