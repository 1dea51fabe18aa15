"""What several references share: masked selection, and packed rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fgrl.types import autocast_dtype, is_autocast_enabled


def as_mask(mask: Tensor | None, like: Tensor) -> Tensor:
    """`mask` as bool; all true, in the shape of `like`, when there is none."""
    if mask is None:
        return torch.ones(like.shape, dtype=torch.bool, device=like.device)
    return mask != 0


def select(tensor: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` where `mask` is true, 0 elsewhere: a NaN under the mask is neither seen nor differentiated."""
    return torch.where(mask, tensor.to(dtype), torch.zeros((), dtype=dtype, device=tensor.device))


class Rows:
    """One row per sequence, `[B, T]`, for tensors that are padded `[B, T]` or packed `[N]` with `cu_seqlens [B + 1]`.

    Packed sequences are laid into rows as long as the longest, so that one recursion over time serves both layouts.
    """

    def __init__(self, cu_seqlens: Tensor | None) -> None:
        self.inside: Tensor | None = None
        if cu_seqlens is not None:
            starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
            longest = int(lengths.max()) if len(lengths) else 0
            offsets = torch.arange(longest, device=cu_seqlens.device)
            self.inside = offsets < lengths[:, None]  # [B, T]
            self.positions = torch.where(self.inside, starts[:, None] + offsets, cu_seqlens[-1])  # [B, T]

    def split(self, tensor: Tensor) -> Tensor:
        """Packed `[N]` to `[B, T]`, with 0 past the end of a sequence; padded tensors as they are."""
        if self.inside is None:
            return tensor
        return torch.cat([tensor, tensor.new_zeros(1)])[self.positions]

    def join(self, rows: Tensor) -> Tensor:
        """`[B, T]` back to the layout of the input."""
        return rows if self.inside is None else rows[self.inside]


def gather_shards(shard: Tensor, process_group: Any) -> Tensor:
    """The shards `[V_rank, ...]` of all processes of the group end to end; its gradient is the part of this process.

    For computations that are the same on each process from there on.
    """
    return shard if process_group is None else _GatheredShards.apply(shard, process_group)  # type: ignore[no-untyped-call]


class _GatheredShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shard: Tensor, process_group: Any) -> Tensor:
        size = torch.tensor([len(shard)], device=shard.device)
        sizes = [torch.empty_like(size) for _ in range(dist.get_world_size(process_group))]
        dist.all_gather(sizes, size, group=process_group)
        lengths = [int(size) for size in sizes]
        padded = shard.new_zeros(max(lengths), *shard.shape[1:])
        padded[: len(shard)] = shard
        shards = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(shards, padded, group=process_group)
        start = sum(lengths[: dist.get_rank(process_group)])
        ctx.rows = slice(start, start + len(shard))
        return torch.cat([other[:length] for other, length in zip(shards, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.rows], None


Function = TypeVar("Function", bound=Callable[..., Any])


def rounds_operands(*names: str) -> Callable[[Function], Function]:
    """Autocast for a function of hidden states and heads: it rounds the arguments `names` and nothing else.

    Everything is computed in fp32, with the operands of products rounded to the dtype of autocast first. Their gradient
    passes the rounding as it is.
    """

    def decorate(function: Function) -> Function:
        parameters = signature(function)

        @wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            device = (args[0] if args else options[names[0]]).device
            if not is_autocast_enabled(device.type):
                return function(*args, **options)
            arguments = parameters.bind(*args, **options).arguments
            operands = [arguments[name] for name in names]
            dtype = autocast_dtype(device.type, *operands, arguments.get("bias"))
            if dtype is not None:
                rounded = (_Rounded.apply(operand, dtype) for operand in operands)  # type: ignore[no-untyped-call]
                arguments.update(zip(names, rounded, strict=True))
            with torch.autocast(device.type, enabled=False):
                return function(**arguments)

        return cast("Function", run)

    return decorate


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = tensor.dtype
        return tensor.to(dtype).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None
