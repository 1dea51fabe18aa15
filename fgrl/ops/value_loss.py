"""Public op: the clipped value loss."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._aggregation import AGGREGATIONS, or_inf, split_normalizer, wants_gradient
from fgrl.ops._library import LIBRARY, differentiate_with_outputs, launch_with_triton
from fgrl.types import Aggregation, ValueLoss, compute_dtype

STATS = ("value_loss", "clip_fraction", "value_mean", "return_mean", "mean_squared_error", "tokens")

LIBRARY.define(
    "value_loss(Tensor values, Tensor? old_values, Tensor returns, Tensor? mask, Tensor? normalizer, "
    "Tensor? cu_seqlens, float denominator, int aggregation, float clip, bool grad_values) "
    "-> (Tensor loss, Tensor stats, Tensor scale, Tensor values_grad)"
)
launch_with_triton("value_loss", "value_loss")


def value_loss(
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor,
    mask: Tensor | None = None,
    *,
    clip: float | None = 0.2,
    normalizer: float | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    aggregation: Aggregation = "token-mean",
) -> ValueLoss:
    """Squared error of the value model, clipped around its old prediction (the PPO2 form of arXiv 1707.06347).

    `max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2` per valid token.

    Args:
        values: `[B, T]`, or packed `[N]`; prediction of the value model being trained.
        old_values: same shape, its prediction at the start of the update; may be None when `clip` is None.
        returns: same shape, from `gae` or `token_advantages`.
        mask: same shape, bool or 0/1. Default: all.
        clip: half-width of the interval around `old_values`, in units of reward; None for the plain squared error.
        normalizer: denominator of the aggregation over the *global* batch. Default: the local count.
        cu_seqlens: `[B + 1]` offsets of packed sequences; the seq-* aggregations need it for packed tokens.
        aggregation: "token-mean", "token-sum", "seq-mean-token-sum" or "seq-mean-token-mean".

    Returns:
        `ValueLoss(loss, stats)`: a 0-d loss, and 0-d tensors `value_loss` (the loss), `clip_fraction`, `value_mean`,
        `return_mean`, `mean_squared_error` and `tokens`.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, in one sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> value = torch.tensor([[1.0, 2.0]])
        >>> fgrl.ops.value_loss(value, value, torch.tensor([[0.0, 2.0]])).loss
        tensor(0.2500)
    """
    _checks.check_floats("values", values, returns=returns)
    _checks.check_optional_floats("values", values, old_values=old_values)
    _checks.check_mask("mask", mask, "values", values)
    _checks.check_choice("aggregation", aggregation, get_args(Aggregation))
    _checks.check_aggregation(aggregation, "values", values, cu_seqlens)
    if clip is not None:
        _checks.check_positive("clip", clip)
    _checks.check_normalizer(normalizer)
    if clip is not None and old_values is None:
        raise ValueError(f"old_values is None; it must be given where clip is {clip}")
    if backend.resolve("value_loss", values.device) == "reference":
        return backend.reference("value_loss", values.device)(
            values,
            old_values,
            returns,
            mask,
            clip=clip,
            normalizer=normalizer,
            cu_seqlens=cu_seqlens,
            aggregation=aggregation,
        )
    divisor, denominator = split_normalizer(normalizer, values.device)
    loss, stats, *_ = torch.ops.fgrl.value_loss(
        values,
        old_values,
        returns,
        mask,
        divisor,
        cu_seqlens,
        denominator,
        AGGREGATIONS.index(aggregation),
        or_inf(clip),
        wants_gradient(values),
    )
    return ValueLoss(loss, dict(zip(STATS, stats.unbind(), strict=True)))


@torch.library.register_fake("fgrl::value_loss", lib=LIBRARY)
def _value_loss_fake(
    values: Tensor, old_values: Tensor | None, returns: Tensor, mask: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    dtype = compute_dtype(values, old_values, returns)
    return (
        values.new_empty((), dtype=dtype),
        values.new_empty(len(STATS), dtype=dtype),
        values.new_empty((), dtype=dtype),
        values.new_empty(values.shape if rest[-1] else 0, dtype=dtype),
    )


differentiate_with_outputs("value_loss", "values")
