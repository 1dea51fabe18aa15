"""Last hidden states and LM head of a causal LM: what the `linear_*` ops take instead of logits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

from torch import Tensor

from fgrl.models.adapters import unwrapped
from fgrl.models.batches import learn_batches, model_inputs
from fgrl.models.formula import learn_formula
from fgrl.models.output_head import output_head
from fgrl.models.probe import Memory, head_input


class HiddenStates(NamedTuple):
    """`hidden [B, T, D]` with the logit scale applied, head `weight [V, D]`, `bias [V]` and logit soft-cap, or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float | None


class OwnLogits(NamedTuple):
    """`logits [B, T, V]` of a model whose logits are no `softcap(hidden @ weight.T + bias)`."""

    logits: Tensor


_memory = Memory()


@overload
def hidden_states_and_head(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    fallback: None = None,
    **kwargs: Any,
) -> HiddenStates: ...


@overload
def hidden_states_and_head(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    fallback: Literal["logits"],
    **kwargs: Any,
) -> HiddenStates | OwnLogits: ...


def hidden_states_and_head(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    fallback: Literal["logits"] | None = None,
    **kwargs: Any,
) -> HiddenStates | OwnLogits:
    """Run a Hugging Face causal LM up to its head: the head is not multiplied.

    The model's logits are `softcap(hidden @ weight.T + bias)`. `hidden` is what the model's own head reads, behind
    whatever the family puts in front of it (the transform of BERT, the division of MiniCPM). Scale and soft-cap behind
    the head are learned from the model and the whole formula is compared with the model's own logits, on a few tokens,
    the first time that a model object is seen; the scale is then applied to `hidden` and `bias`. LoRA on the head is
    merged into `weight`, `W + scaling * B A`, so that its gradient reaches A and B.

    Args:
        model: a causal LM, or a PEFT model of one.
        input_ids: `[B, T]` int64.
        attention_mask: `[B, T]`, 1 at real tokens. Padding may be on either side.
        position_ids: `[B, T]`, counted from 0 for every family (RoBERTa's own start at `padding_idx + 1`); packed
            sequences start at 0 again. By default each sequence is numbered as it would be alone, without padding.
        fallback: "logits" gives the model's own logits, as `OwnLogits`, where the formula does not hold.
        **kwargs: passed to the model.

    Raises:
        ValueError: the model's logits are not those of the formula; its head is neither a linear layer nor one with
            LoRA that can be merged (without DoRA, and while training without dropout); or the model does not bear the
            padding or the packing of this batch.
    """
    inner = unwrapped(model)
    while not hasattr(model, "get_base_model") and model is not inner:  # DDP and others; PEFT has a say in the forward
        model = getattr(model, "_orig_mod", None) or model.module
    head = inner.get_output_embeddings()
    if head is None:
        raise ValueError(f"model is a {type(inner).__name__}, which has no output embeddings; it must be a causal LM")
    batches = learn_batches(inner, head)
    inputs = model_inputs(inner, batches, input_ids, attention_mask, position_ids)
    try:
        formula = _memory.recall(inner, [head], lambda: learn_formula(model, inner, head))
        if formula.problem is not None:
            raise ValueError(formula.problem)
        weight, bias = output_head(head)
    except ValueError:
        if fallback == "logits":
            return OwnLogits(model(**inputs, **kwargs).logits)
        raise
    with head_input(head, keep=1) as seen:
        model(**inputs, **kwargs)
    (hidden,) = seen
    if formula.scale != 1.0:
        hidden = hidden * formula.scale
        bias = None if bias is None else bias * formula.scale
    return HiddenStates(hidden, weight, bias, formula.softcap)
