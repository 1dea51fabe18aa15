"""Inputs that several op tests share, and the rule by which a result counts as right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

POISONS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "garbage": -6.0e4}

# One token; odd; a row wider than a power of two; more rows than columns.
SHAPES = {"1x1": (1, 1), "3x7": (3, 7), "2x33": (2, 33), "5x2": (5, 2)}

MASKS = ("none", "full", "tails", "holes", "one-token", "masked-row", "all-masked")


def make_mask(kind: str, shape: tuple[int, int]) -> Tensor | None:
    """A bool mask `[B, T]` of one of the kinds in `MASKS`."""
    if kind == "none":
        return None
    mask = torch.ones(shape, dtype=torch.bool)
    if kind == "tails":
        for row in range(shape[0]):
            mask[row, max(1, shape[1] - row) :] = False
    elif kind == "holes":
        mask = torch.rand(shape) < 0.6
        mask[:, 0] = True
    elif kind == "one-token":
        mask[:] = False
        mask[shape[0] // 2, shape[1] // 2] = True
    elif kind == "masked-row":
        mask[-1] = False
    elif kind == "all-masked":
        mask[:] = False
    return mask


def poisoned(tensor: Tensor, mask: Tensor | None, value: float) -> Tensor:
    """`tensor` with `value` wherever the mask is false."""
    return tensor if mask is None else torch.where(mask, tensor, torch.full_like(tensor, value))


def pack(tensor: Tensor, lengths: Sequence[int]) -> Tensor:
    """The first `lengths[b]` entries of each row of `[B, T, ...]`, end to end."""
    return torch.cat([row[:length] for row, length in zip(tensor, lengths, strict=True)])


def unpack(packed: Tensor, lengths: Sequence[int], width: int) -> Tensor:
    """The inverse of `pack`, with 0 where nothing was kept."""
    rows = packed.new_zeros((len(lengths), width, *packed.shape[1:]))
    for row, part in zip(rows, packed.split(list(lengths)), strict=True):
        row[: len(part)] = part
    return rows


def offsets(lengths: Sequence[int], dtype: torch.dtype = torch.int32) -> Tensor:
    """`cu_seqlens` of sequences of these lengths."""
    return torch.tensor([0, *np.cumsum(lengths)], dtype=dtype)


def leaf(tensor: Tensor) -> Tensor:
    """A fresh copy that collects a gradient."""
    return tensor.detach().clone().requires_grad_()


def gradients(function: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The function's value, and its gradient by every input, zeros where an input does not matter."""
    leaves = {name: leaf(tensor) for name, tensor in inputs.items()}
    value = function(**leaves)
    value.backward()
    return value.detach(), {
        name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for name, tensor in leaves.items()
    }


def assert_equals_oracle(ours: Tensor, oracle: Any, message: str = "") -> None:
    """A float64 result agrees with scalar Python arithmetic to rounding."""
    expected = torch.as_tensor(np.asarray(oracle, dtype=np.float64)).reshape(ours.shape)
    torch.testing.assert_close(ours.detach().double(), expected, rtol=1e-9, atol=1e-10, msg=lambda m: f"{message}\n{m}")


def assert_as_accurate(ours: Tensor, baseline: Tensor, exact: Tensor, *, eps: float = 1e-6, message: str = "") -> None:
    """`|ours - exact| <= 2 |baseline - exact| + eps` in max norm and in relative RMS.

    `baseline` is plain PyTorch in the dtype of the inputs, `exact` the float64 result for the same inputs.

    PyTorch's may be exact by luck. So an ulp of the largest value, in fp32, is allowed in any case; and of a single
    number, a sum over terms of around 1, half an ulp of a term, whatever is left where they cancel.
    """
    assert ours.shape == exact.shape, message
    assert not torch.isnan(ours).any(), f"{message}: NaN"
    if exact.numel() == 0:
        return
    error, allowed = (ours.double() - exact).abs(), (baseline.double() - exact).abs()
    ulp = 2**-23 * float(exact.detach().abs().max())
    assert error.max() <= 2 * allowed.max() + max(eps, ulp), (
        f"{message}: max {error.max():.3e}, allowed {allowed.max():.3e}"
    )
    scale = exact.square().mean().sqrt().clamp(min=2**-24 / eps if exact.numel() == 1 else 1e-30)
    rms, rms_allowed = error.square().mean().sqrt() / scale, allowed.square().mean().sqrt() / scale
    assert rms <= 2 * rms_allowed + eps, f"{message}: relative RMS {rms:.3e}, allowed {rms_allowed:.3e}"
