"""Public op: the token reward head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._library import LIBRARY, launch_with_triton
from fgrl.types import compute_dtype

MAX_HEADS = 32
"""Heads of one operator call, which reads hidden once; more of them are computed in groups."""

# What the backward pass needs of a row beside its hidden states, so that no row has to be summed up again: `scores` are
# the rewards without the bias and `rstd` is 1 / sqrt(mean(h^2) + eps). Both are empty without `norm_weight`.
LIBRARY.define(
    "token_reward_head(Tensor hidden, Tensor weight, Tensor? bias, Tensor? norm_weight, float norm_eps) "
    "-> (Tensor rewards, Tensor scores, Tensor rstd)"
)
# The gradients that are needed, in the order of the inputs.
LIBRARY.define(
    "token_reward_head_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor? norm_weight, "
    "Tensor scores, Tensor rstd, bool needs_hidden, bool needs_weight, bool needs_bias, bool needs_norm_weight) "
    "-> Tensor[]"
)
launch_with_triton("token_reward_head", "token_reward_head")
launch_with_triton("token_reward_head_backward", "token_reward_head")


def token_reward_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
) -> Tensor:
    """One scalar (or K) per token: `r_t = w . h_t + b`, accumulated in fp32 (Xu et al., arXiv 2406.02756).

    Args:
        hidden: `[..., D]`, fp32, bf16 or fp16 (fp64 for oracles). Rows may be at any distance from each other; they are
            copied only where the elements of a row are not side by side. Read once by the forward pass, and once by
            the backward pass.
        weight: `[D]` for one reward a token, or `[K, D]`. More than 32 heads are computed 32 at a time, with one read
            of `hidden` each.
        bias: 0-d or `[1]` for weight `[D]`; `[K]` for weight `[K, D]`.
        norm_weight: `[D]`, puts the model's final RMSNorm in front of the head,
            `h / sqrt(mean(h^2) + norm_eps) * norm_weight`.
        norm_eps: its epsilon, greater than 0.

    Returns:
        `[...]` for weight `[D]`, `[..., K]` for weight `[K, D]`; fp32 (fp64 when an input is fp64). Differentiable in
        hidden, weight, bias and norm_weight, once; a gradient that nobody needs is not computed.

    A row of `hidden` that is not finite spoils its own rewards and no others. The gradients of weight and norm_weight
    are sums over all rows, in which a NaN stays one even where the gradient of the reward is 0: leave such rows out
    before (`hidden[mask]`), as there is no mask here.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, in one sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> fgrl.ops.token_reward_head(torch.eye(2), torch.tensor([1.0, -2.0]), torch.tensor(0.5))
        tensor([ 1.5000, -1.5000])
    """
    _checks.check_float("hidden", hidden)
    if hidden.ndim < 1:
        raise ValueError("hidden has shape []; it must be [..., D]")
    _checks.check_float("weight", weight)
    width = hidden.shape[-1]
    if weight.ndim not in (1, 2) or weight.shape[-1] != width:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be [{width}] or [K, {width}] like hidden")
    _checks.check_device("weight", weight, "hidden", hidden)
    if bias is not None:
        _checks.check_float("bias", bias)
        allowed = [(), (1,)] if weight.ndim == 1 else [(weight.shape[0],)]
        if tuple(bias.shape) not in allowed:
            wanted = "[] or [1]" if weight.ndim == 1 else f"[{weight.shape[0]}]"
            raise ValueError(f"bias has shape {list(bias.shape)}; it must be {wanted} like weight")
        _checks.check_device("bias", bias, "hidden", hidden)
    if norm_weight is not None:
        _checks.check_float("norm_weight", norm_weight)
        _checks.check_shape("norm_weight", norm_weight, (width,), "hidden's last dimension")
        _checks.check_device("norm_weight", norm_weight, "hidden", hidden)
    _checks.check_positive("norm_eps", norm_eps)
    if backend.resolve("token_reward_head", hidden.device) == "reference":
        run = backend.reference("token_reward_head", hidden.device)
        return run(hidden, weight, bias, norm_weight=norm_weight, norm_eps=norm_eps)
    weights: Sequence[Tensor] = (weight,) if weight.ndim == 1 else weight.split(MAX_HEADS)
    biases: Sequence[Tensor | None] = (bias,) * len(weights)
    if bias is not None and len(weights) > 1:
        biases = bias.split(MAX_HEADS)
    groups = [
        torch.ops.fgrl.token_reward_head(hidden, group, group_bias, norm_weight, float(norm_eps))[0]
        for group, group_bias in zip(weights, biases, strict=True)
    ]
    return groups[0] if len(groups) == 1 else torch.cat(groups, dim=-1)


@torch.library.register_fake("fgrl::token_reward_head", lib=LIBRARY)
def _token_reward_head_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads = hidden.shape[:-1], weight.shape[:-1]
    rewards = hidden.new_empty((*rows, *heads), dtype=compute_dtype(hidden, weight, bias, norm_weight))
    if norm_weight is None:
        return rewards, rewards.new_empty(0), rewards.new_empty(0)
    return rewards, torch.empty_like(rewards), rewards.new_empty(rows)


@torch.library.register_fake("fgrl::token_reward_head_backward", lib=LIBRARY)
def _token_reward_head_backward_fake(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    scores: Tensor,
    rstd: Tensor,
    *needs: bool,
) -> list[Tensor]:
    inputs = (hidden, weight, bias, norm_weight)
    return [
        tensor.new_empty(tensor.shape)
        for tensor, need in zip(inputs, needs, strict=True)
        if need and tensor is not None
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, scores, rstd = output
    ctx.mark_non_differentiable(scores, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4], scores, rstd)


@once_differentiable
def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    needs = ctx.needs_input_grad[:4]
    found = iter(torch.ops.fgrl.token_reward_head_backward(grad, *ctx.saved_tensors, *needs))
    return (*(next(found) if need else None for need in needs), None)


torch.library.register_autograd("fgrl::token_reward_head", _backward, setup_context=_setup_context, lib=LIBRARY)
