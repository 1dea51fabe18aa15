"""Inputs of `token_reward_head`, the same in plain PyTorch, and its gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def draw(
    rows: int,
    width: int,
    heads: int,
    normed: bool,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Hidden states, weight, bias and, if `normed`, the weight of the norm."""
    inputs = {
        "hidden": torch.randn(rows, width),
        "weight": torch.randn(heads, width) / width**0.5,
        "bias": torch.randn(heads),
    }
    if normed:
        inputs["norm_weight"] = torch.rand(width) + 0.5
    return {name: tensor.to(device, dtype) for name, tensor in inputs.items()}


def eager(hidden: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor | None = None) -> Tensor:
    """Every step in the dtype of the inputs, as a model would do it."""
    if norm_weight is not None:
        hidden = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6) * norm_weight
    return hidden @ weight.T + bias


def results(head: Callable[..., Tensor], inputs: dict[str, Tensor], grad: Tensor) -> list[Tensor]:
    """Rewards, and the gradient of each input."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    rewards = head(**leaves)
    rewards.backward(grad.to(rewards))
    return [rewards.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)]
