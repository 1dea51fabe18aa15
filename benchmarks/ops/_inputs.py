"""Inputs that several ops share: ragged batches of rollouts, and how many bytes of them must be read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.registry import Inputs, Shape, Unavailable, move


def lengths(shape: Shape, generator: torch.Generator) -> Tensor:
    """`[B]` lengths as responses have them: log-normal, the middle at 0.4 of the longest, which is there too."""
    draws = torch.randn(shape.batch, generator=generator)
    drawn = (math.log(0.4 * shape.length) + 0.6 * draws).exp().long().clamp(1, shape.length)
    drawn[0] = shape.length
    return drawn


def rollouts(shape: Shape, device: torch.device, *names: str) -> Inputs:
    """Tensors of normal numbers, one value a token, with what says which of them count.

    Padded: `[B, T]` and a bool `mask`, true at the front of each row. Packed: `[N]` and `cu_seqlens`, all valid.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = lengths(shape, generator)
    if shape.packed:
        cu_seqlens = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()
        inputs: Inputs = {"mask": None, "cu_seqlens": cu_seqlens}
        layout: tuple[int, ...] = (int(sizes.sum()),)
    else:
        inputs = {"mask": torch.arange(shape.length) < sizes[:, None], "cu_seqlens": None}
        layout = (shape.batch, shape.length)
    for name in names:
        inputs[name] = torch.randn(layout, generator=generator).to(shape.dtype)
    return move(inputs, device)


def with_float_mask(inputs: Inputs) -> Inputs:
    """Adds the mask as the numbers that verl multiplies by."""
    mask = inputs["mask"]
    return inputs if mask is None else {**inputs, "float_mask": mask.float()}


def padded_only(inputs: Inputs) -> None:
    """Raises `Unavailable` for packed inputs."""
    if inputs["cu_seqlens"] is not None:
        raise Unavailable("takes padded tensors only")


def read(inputs: Inputs, *names: str) -> float:
    """Bytes of the tensors' valid tokens, and of the mask."""
    mask, cu_seqlens = inputs["mask"], inputs["cu_seqlens"]
    layout = [tensor for tensor in (mask, cu_seqlens) if tensor is not None]
    total = float(sum(map(nbytes, layout)))
    for name in names:
        tensor = inputs[name]
        total += nbytes(tensor) if mask is None else int(mask.sum()) * tensor.element_size()
    return total


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
