"""How the operators of the losses take `aggregation` and `normalizer`, and which gradients they are to compute."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from fgrl.types import Aggregation

# An aggregation travels as its position; csrc/ and kernels/ count in the same order.
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)


def split_normalizer(normalizer: float | Tensor | None, device: torch.device) -> tuple[Tensor | None, float]:
    """The normalizer as a tensor on `device`, or as a number: 0 for the local count."""
    if isinstance(normalizer, Tensor):
        return normalizer.to(device), 0.0
    return None, 0.0 if normalizer is None else float(normalizer)


def or_inf(bound: float | None) -> float:
    """A bound as a number: no bound is infinity."""
    return math.inf if bound is None else float(bound)


def wants_gradient(tensor: Tensor) -> bool:
    """Whether a backward pass may ask for the gradient of `tensor`: known to the host, at no cost."""
    return tensor.requires_grad and torch.is_grad_enabled()
