"""Public op: the token reward head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._library import LIBRARY, compute_dtype, launch_with_triton

LIBRARY.define(
    "token_reward_head(Tensor hidden, Tensor weight, Tensor? bias, Tensor? norm_weight, float norm_eps) "
    "-> (Tensor rewards, Tensor rstd)"
)
LIBRARY.define(
    "token_reward_head_backward(Tensor grad_rewards, Tensor hidden, Tensor weight, Tensor? norm_weight, Tensor rstd, "
    "bool needs_hidden, bool needs_weight, bool needs_norm) "
    "-> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias, Tensor grad_norm_weight)"
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
        hidden: `[..., D]`, fp32, bf16 or fp16 (fp64 for oracles); rows may be strided.
        weight: `[D]` for one reward a token, or `[K, D]`.
        bias: 0-d or `[1]` for weight `[D]`; `[K]` for weight `[K, D]`.
        norm_weight: `[D]`, puts the model's final RMSNorm in front of the head,
            `h / sqrt(mean(h^2) + norm_eps) * norm_weight`.
        norm_eps: its epsilon, greater than 0.

    Returns:
        `[...]` for weight `[D]`, `[..., K]` for weight `[K, D]`; fp32 (fp64 when an input is fp64). Differentiable in
        hidden, weight, bias and norm_weight.

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
    rows = hidden.reshape(-1, width)  # a view, unless leading dimensions cannot be merged
    heads = weight[None] if weight.ndim == 1 else weight  # [K, D]
    biases = bias if bias is None else bias.reshape(-1)  # [K]
    rewards, _ = torch.ops.fgrl.token_reward_head(rows, heads, biases, norm_weight, float(norm_eps))
    return rewards.reshape(*hidden.shape[:-1], *weight.shape[:-1])


@torch.library.register_fake("fgrl::token_reward_head", lib=LIBRARY)
def _head_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_eps: float
) -> tuple[Tensor, Tensor]:
    dtype, rows = compute_dtype(hidden, weight, bias, norm_weight), hidden.shape[0]
    return (
        hidden.new_empty((rows, weight.shape[0]), dtype=dtype),
        hidden.new_empty(0 if norm_weight is None else rows, dtype=dtype),
    )


@torch.library.register_fake("fgrl::token_reward_head_backward", lib=LIBRARY)
def _head_backward_fake(
    grad_rewards: Tensor,
    hidden: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    rstd: Tensor,
    needs_hidden: bool,
    needs_weight: bool,
    needs_norm: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if needs_hidden else (0,)),
        grad_rewards.new_empty(weight.shape if needs_weight else (0,)),
        grad_rewards.new_empty(weight.shape[0]),
        grad_rewards.new_empty(weight.shape[1] if needs_norm else 0),
    )


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, bias, norm_weight, _ = inputs
    ctx.save_for_backward(hidden, weight, norm_weight, output[1])
    ctx.bias_dtype = None if bias is None else bias.dtype


@once_differentiable
def _head_backward(ctx: Any, grad_rewards: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    hidden, weight, norm_weight, rstd = ctx.saved_tensors
    needs_hidden, needs_weight, needs_bias, needs_norm, _ = ctx.needs_input_grad
    grad_hidden, grad_weight, grad_bias, grad_norm = torch.ops.fgrl.token_reward_head_backward(
        grad_rewards, hidden, weight, norm_weight, rstd, needs_hidden, needs_weight, needs_norm
    )
    return (
        grad_hidden if needs_hidden else None,
        grad_weight.to(weight.dtype) if needs_weight else None,
        grad_bias.to(ctx.bias_dtype) if needs_bias else None,
        grad_norm.to(norm_weight.dtype) if needs_norm else None,
        None,
    )


torch.library.register_autograd("fgrl::token_reward_head", _head_backward, setup_context=_keep_inputs, lib=LIBRARY)
