"""Public op: the clipped value loss."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._library import AGGREGATIONS, LIBRARY, compute_dtype, launch_with_triton
from fgrl.types import Aggregation, ValueLoss

STATS = ("value_loss", "clip_fraction", "value_mean", "return_mean", "mean_squared_error", "tokens")
# The gradient is that of the loss before its last division; `scale` is the inverse of that denominator.
LIBRARY.define(
    "value_loss(Tensor values, Tensor? old_values, Tensor returns, Tensor? mask, Tensor? normalizer, "
    "Tensor? cu_seqlens, float clip, int aggregation, float denominator, bool with_gradient) "
    "-> (Tensor loss, Tensor stats, Tensor grad_values, Tensor scale)"
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
        raise ValueError(f"old_values is None; clip {clip} needs it")
    if backend.resolve("value_loss", values.device) == "reference":
        run = backend.reference("value_loss", values.device)
        return run(
            values,
            old_values,
            returns,
            mask,
            clip=clip,
            normalizer=normalizer,
            cu_seqlens=cu_seqlens,
            aggregation=aggregation,
        )
    loss, stats, *_ = torch.ops.fgrl.value_loss(
        values,
        old_values,
        returns,
        mask,
        normalizer if isinstance(normalizer, Tensor) else None,
        cu_seqlens,
        math.inf if clip is None else float(clip),
        AGGREGATIONS.index(aggregation),
        0.0 if normalizer is None or isinstance(normalizer, Tensor) else float(normalizer),
        torch.is_grad_enabled() and values.requires_grad,
    )
    return ValueLoss(loss, dict(zip(STATS, stats.detach().unbind(), strict=True)))


@torch.library.register_fake("fgrl::value_loss", lib=LIBRARY)
def _value_loss_fake(
    values: Tensor, old_values: Tensor | None, returns: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, with_gradient = compute_dtype(values, old_values, returns), options[-1]
    return (
        values.new_empty((), dtype=dtype),
        values.new_empty(len(STATS), dtype=dtype),
        values.new_empty(values.shape if with_gradient else (0,), dtype=dtype),
        values.new_empty((), dtype=dtype),
    )


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:])
    ctx.dtype, ctx.arguments = inputs[0].dtype, len(inputs)


@once_differentiable
def _value_loss_backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad_values, scale = ctx.saved_tensors
    return ((grad_values * (grad_loss * scale)).to(ctx.dtype), *[None] * (ctx.arguments - 1))


torch.library.register_autograd("fgrl::value_loss", _value_loss_backward, setup_context=_keep_gradient, lib=LIBRARY)
