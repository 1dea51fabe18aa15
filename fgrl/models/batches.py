"""How to hand a batch to a model so that each sequence in it gives what it gives alone: positions, padding, packing."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fgrl.models.fit import context_length, vocabulary_rows
from fgrl.models.probe import Memory, head_input, input_device, ordinary_ids, rounding, takes, undisturbed


class Batches(NamedTuple):
    """What was learned about a model.

    Attributes:
        first_position: position id of a first token, as the model numbers them itself: 0, or `padding_idx + 1` for
            RoBERTa's family. None for a model that takes no position ids.
        counted: whether padded batches get position ids counted from the mask. Otherwise the model numbers its tokens.
        left: whether padding on the left leaves every sequence as it is alone.
        right: the same for padding on the right.
        packed: whether sequences one after the other do, with position ids that start again.
    """

    first_position: int | None
    counted: bool
    left: bool
    right: bool
    packed: bool


_memory = Memory()


def learn_batches(model: Any, head: nn.Module) -> Batches:
    """Ask `model`, once, with six tokens; `head` is where its last hidden states are read.

    Args:
        model: the transformers model, out of its wrappers.
        head: its head.
    """
    return _memory.recall(model, [head], lambda: _learn(model, head))


def model_inputs(
    model: Any,
    batches: Batches,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> dict[str, Any]:
    """Keyword arguments of `model` for a batch.

    Args:
        model: as for `learn_batches`.
        batches: what was learned about it.
        input_ids: `[B, T]` int64.
        attention_mask: `[B, T]`, 1 at real tokens.
        position_ids: `[B, T]`, counted from 0.

    Raises:
        ValueError: the model would give a sequence of this batch something else than alone.
    """
    name = type(model).__name__
    inputs: dict[str, Any] = {"input_ids": input_ids}
    if takes(model, "use_cache", or_any=True):
        inputs["use_cache"] = False  # transformers recognises packed position ids without a cache only
    if position_ids is not None:
        if batches.first_position is None:
            raise ValueError(f"position_ids is given, and {name} takes none; it must be None")
        if attention_mask is None and not batches.packed and bool((position_ids.diff(dim=-1) != 1).any()):
            raise ValueError(f"position_ids is that of packed sequences, which {name} does not keep apart; {_ALONE}")
        inputs["position_ids"] = position_ids + batches.first_position
    if attention_mask is None:
        return inputs
    for side, supported, edge in (("left", batches.left, 0), ("right", batches.right, -1)):
        if not supported and bool((attention_mask[:, edge] == 0).any()):
            raise ValueError(f"attention_mask has padding on the {side}, which changes what {name} computes; {_ALONE}")
    if takes(model, "attention_mask", or_any=True):
        inputs["attention_mask"] = attention_mask
    if position_ids is None and batches.counted and batches.first_position is not None:
        inputs["position_ids"] = _counted(attention_mask) + batches.first_position
    elif position_ids is None and (padding := _padding_id(model)) is not None:
        # RoBERTa's family numbers the tokens that are not its padding token
        inputs["input_ids"] = input_ids.masked_fill(attention_mask == 0, padding)
    return inputs


_ALONE = "it must have sequences of one length, or a batch must be one sequence"


def _counted(attention_mask: Tensor) -> Tensor:
    return attention_mask.long().cumsum(-1).sub(1).clamp(min=0)


def _padding_id(model: Any) -> int | None:
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    rows = vocabulary_rows(model) or 0
    return padding if isinstance(padding, int) and 0 <= padding < rows else None


def _learn(model: Any, head: nn.Module) -> Batches:
    device = input_device(model)
    tokens = ordinary_ids(model, 6)
    ids = torch.tensor([tokens], device=device)
    with undisturbed(model):
        alone, short = (_attempt(model, head, {"input_ids": part, **_cache_off(model)}) for part in (ids, ids[:, :3]))
        if alone is None or short is None:
            raise ValueError(
                f"model is a {type(model).__name__}, which does not run on three token ids; it must be one that does"
            )
        first = _first_position(model, head, ids, alone) if takes(model, "position_ids") else None
        best = Batches(first, False, False, False, False)
        for counted in (True, False) if first is not None else (False,):
            candidate = Batches(first, counted, True, True, True)
            left, right = (
                _bears_padding(model, head, candidate, tokens, [alone, short], side) for side in ("left", "right")
            )
            if left + right > best.left + best.right:
                best = best._replace(counted=counted, left=left, right=right)
        return best._replace(packed=first is not None and _bears_packing(model, head, best, tokens, alone))


def _first_position(model: Any, head: nn.Module, ids: Tensor, alone: Tensor) -> int | None:
    """The number of the first token that gives what the model gives when it numbers the tokens itself."""
    padding, context = _padding_id(model), context_length(model.config) or 8
    best, smallest = None, float("inf")
    for first in dict.fromkeys([0, *([] if padding is None else [padding + 1]), 1, 2]):
        if smallest == 0 or first + ids.shape[1] > context:  # a position that is not there aborts a GPU's process
            continue
        positions = first + torch.arange(ids.shape[1], device=ids.device)[None]
        states = _attempt(model, head, {"input_ids": ids, "position_ids": positions, **_cache_off(model)})
        difference = _difference(states, alone)
        if difference < smallest:
            best, smallest = first, difference
    return best if smallest <= _tolerance(alone, model) else None


def _bears_padding(
    model: Any, head: nn.Module, batches: Batches, tokens: list[int], alone: list[Tensor], side: str
) -> bool:
    """Whether sequences give what they give alone beside longer ones; `alone` is that of all tokens, then of three."""
    width = min(2 * len(tokens) + 1, (context_length(model.config) or 64) - (batches.first_position or 0))
    device = alone[0].device
    ids = torch.full((len(alone) + 1, width), tokens[0], device=device)
    mask = torch.ones_like(ids)
    spans = []
    for row, states in enumerate(alone):
        length = states.shape[1]
        spans.append(slice(width - length, width) if side == "left" else slice(length))
        mask[row] = 0
        mask[row, spans[row]] = 1
        ids[row, spans[row]] = torch.tensor(tokens[:length], device=device)
    together = _attempt(model, head, model_inputs(model, batches, ids, mask))
    return together is not None and all(
        _difference(together[row : row + 1, spans[row]], states) <= _tolerance(states, model)
        for row, states in enumerate(alone)
    )


def _bears_packing(model: Any, head: nn.Module, batches: Batches, tokens: list[int], alone: Tensor) -> bool:
    """Whether a sequence gives what it gives alone before and behind another one."""
    other = tokens[::-1][:4]
    device = alone.device
    for ids, place in (([*other, *tokens], slice(4, None)), ([*tokens, *other], slice(len(tokens)))):
        lengths = (4, len(tokens)) if place.start else (len(tokens), 4)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
        inputs = model_inputs(model, batches._replace(packed=True), torch.tensor([ids], device=device), None, positions)
        states = _attempt(model, head, inputs)
        if states is None or _difference(states[:, place], alone) > _tolerance(alone, model):
            return False
    return True


def _cache_off(model: Any) -> dict[str, Any]:
    return {"use_cache": False} if takes(model, "use_cache", or_any=True) else {}


def _attempt(model: Any, head: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
    """What the head reads; None where the model cannot run on `inputs`, or does not call its head once."""
    try:
        with head_input(head) as seen:
            model(**inputs)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    return seen[0] if len(seen) == 1 else None


def _difference(states: Tensor | None, alone: Tensor) -> float:
    """Largest difference, relative to the largest state."""
    if states is None or states.shape != alone.shape or not states.isfinite().all():
        return float("inf")
    return float((states.double() - alone.double()).abs().max() / alone.double().abs().max())


def _tolerance(alone: Tensor, model: Any) -> float:
    """What the roundings of two runs may add up to: 3e-4 in float32, 0.09 in bf16."""
    return math.sqrt(rounding(alone, next(model.parameters())))
