"""Products with the LM head, accumulated in fp32, without copies of it: the three that the `linear_*` ops are made of.

Operands stay in their dtype and results are fp32: on a GPU by `out_dtype`, in bf16 on a CPU with AVX512_BF16 by
csrc/linear/matmul.h. On other CPUs, where PyTorch would round products to bf16 or fp16, operands become fp32, a block
of the vocabulary at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from fgrl import extension
from fgrl.ops._library import LIBRARY
from fgrl.types import compute_dtype

LIBRARY.define("matmul(Tensor a, Tensor b, bool add, Tensor(a!) out) -> ()")
LIBRARY.define("prefers_matmul(ScalarType dtype) -> bool")

_BLOCK = 4096  # vocabulary rows of the head that are converted at a time, and on a CPU summed in fp32


class Head:
    """The LM head `weight [V, D]` as an operand of products with hidden states and with gradients by logits.

    Args:
        weight: the head, as the caller has it.
        hidden: any tensor of the dtype of the hidden states.
        bias: the bias, which has a say in the dtype of the computation.
        autocast: what autocast makes of operands; None: they stay as they are.
        cast: the head as an earlier call has cast it for autocast (`cast` of that Head).
    """

    def __init__(
        self,
        weight: Tensor,
        hidden: Tensor,
        bias: Tensor | None,
        autocast: torch.dtype | None = None,
        cast: Tensor | None = None,
    ) -> None:
        self.dtype = compute_dtype(hidden, weight, bias)
        """What products are accumulated and returned in."""
        common = torch.promote_types(hidden.dtype, weight.dtype) if autocast is None else autocast
        self.operands = common if _accumulates_wider(weight.device.type, common, self.dtype) else self.dtype
        """What is multiplied: hidden states, the head, and gradients by logits."""
        self.in_place = self.operands == self.dtype or weight.device.type == "cpu"
        """Whether gradients by logits take their place. In a shorter format not on a GPU, where parts of a row are
        written while others are read."""
        if autocast in (None, weight.dtype):
            self.cast = weight.new_empty(0, dtype=autocast)
            """The head in the dtype of autocast, cast once for all chunks and for the backward pass; else empty."""
            self.weight = weight
        else:
            self.cast = weight.to(autocast) if cast is None else cast
            self.weight = self.cast
        self._autocast = autocast
        self._block = self.weight.shape[0] if self.weight.dtype == self.operands else _BLOCK

    @property
    def rounds_once(self) -> bool:
        """Whether a product may be returned in the dtype of the operands, rounded once: in bf16 on a CPU."""
        return self.in_place and self.operands != self.dtype

    def operand(self, hidden: Tensor) -> Tensor:
        """Hidden states `[R, D]` as they are multiplied, rounded to the dtype of autocast where there is one."""
        return (hidden if self._autocast is None else hidden.to(self._autocast)).to(self.operands)

    def logits(self, hidden: Tensor, out: Tensor) -> None:
        """`out [R, V] = hidden [R, D] @ weight.T`"""
        for block, weight in self._blocks():
            multiply(hidden, weight.T, out[:, block])

    def hidden_grad(self, logits_grad: Tensor) -> Tensor:
        """`logits_grad [R, V] @ weight`, `[R, D]`.

        On a CPU the products with blocks of the vocabulary are added in fp64: PyTorch's product of a few rows adds all
        150k terms in one fp32 sum, which is 25 times less exact.
        """
        shape = logits_grad.shape[0], self.weight.shape[1]
        result = logits_grad.new_empty(shape, dtype=self.dtype)
        if logits_grad.device.type != "cpu" or self.weight.shape[0] <= _BLOCK:
            for block, weight in self._blocks():
                (multiply_add if block.start else multiply)(logits_grad[:, block], weight, result)
            return result
        total = logits_grad.new_zeros(shape, dtype=torch.float64)
        for block, weight in self._blocks(_BLOCK):
            multiply(logits_grad[:, block], weight, result)
            total += result
        return result.copy_(total)

    def weight_grad(self, logits_grad: Tensor, hidden: Tensor, out: Tensor, *, add: bool) -> None:
        """`out [V, D] = logits_grad [R, V].T @ hidden [R, D]`, or `+=`."""
        (multiply_add if add else multiply)(logits_grad.T, hidden, out)

    def _blocks(self, most: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        size = self._block if most is None else min(self._block, most)
        for start in range(0, self.weight.shape[0], size):
            block = slice(start, start + size)
            yield block, self.weight[block].to(self.operands)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """`out = a @ b`"""
    if _is_ours(a, b):
        torch.ops.fgrl.matmul(a, b, False, out)
    elif a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif _widens(a.device.type, a.dtype):
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(a, b))


def multiply_add(a: Tensor, b: Tensor, to: Tensor) -> None:
    """`to += a @ b`"""
    if _is_ours(a, b):
        torch.ops.fgrl.matmul(a, b, True, to)
    elif a.dtype == to.dtype:
        torch.addmm(to, a, b, out=to)
    elif _widens(a.device.type, a.dtype):
        torch.addmm(to, a, b, out_dtype=to.dtype, out=to)
    else:
        to.add_(torch.mm(a, b))


def _accumulates_wider(device_type: str, operands: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether `operands` need not become `dtype` to have their products in it."""
    if device_type != "cpu":
        return True
    return (
        operands == torch.bfloat16 and dtype == torch.float32 and _prefers_matmul(operands, extension.cpu_capability())
    )


def _is_ours(a: Tensor, b: Tensor) -> bool:
    if a.device.type != "cpu" or not _prefers_matmul(a.dtype, extension.cpu_capability()):
        return False
    # A product of a few rows reads its operands, whoever computes it; in bf16 nobody else returns fp32.
    return a.dtype == torch.bfloat16 or min(*a.shape, *b.shape) >= 8


@cache
def _prefers_matmul(dtype: torch.dtype, capability: str | None) -> bool:
    """Whether to multiply by csrc/linear/matmul.h here: fp32 twice as fast as PyTorch's on AMD's with AVX-512."""
    return capability is not None and torch.ops.fgrl.prefers_matmul(dtype)


@cache
def _widens(device_type: str, dtype: torch.dtype) -> bool:
    """Whether PyTorch has a product of this dtype that adds to fp32 on this device (CUDA has; ROCm and XPU may not)."""
    a, to = torch.ones(16, 16, dtype=dtype, device=device_type), torch.ones(16, 16, device=device_type)
    try:
        torch.addmm(to, a, a, out_dtype=torch.float32, out=to)
    except (RuntimeError, NotImplementedError):
        return False
    return True
