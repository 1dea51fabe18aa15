"""The registry: every op once, with its shapes, its inputs, what is measured beside it, and the floor under its time.

An op is called through its public name, and the same call on `fgrl.reference` gives the answer in float64 and what
PyTorch does with it, eager and compiled. Tables, JSON, plots, scaling and `pytest benchmarks/` all come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgrl import backend

SUITES = ("tiny", "quick", "cpu", "gpu")

Inputs = dict[str, Any]
Outputs = tuple[Tensor | None, ...]
Run = Callable[[Inputs], Outputs]


class Unavailable(Exception):
    """A peer cannot be measured here, for the reason given: a grey cell."""


@dataclass(frozen=True)
class Shape:
    """Dimensions of one case. Sequences are ragged: `length` is that of the longest.

    `method` names what is computed, for an op that has several methods with peers of their own.
    """

    batch: int
    length: int
    hidden: int = 0
    vocab: int = 0
    dtype: torch.dtype = torch.float32
    packed: bool = False
    rate: float = 0.0
    method: str = ""

    @property
    def label(self) -> str:
        """What a table calls it: `256x2048 float32`."""
        sizes = "x".join(str(size) for size in (self.batch, self.length, self.hidden, self.vocab) if size)
        rate = f" {100 * self.rate:g} %" if self.rate else ""
        method = f" {self.method}" if self.method else ""
        return f"{sizes} {str(self.dtype).removeprefix('torch.')}{' packed' * self.packed}{rate}{method}"

    def at_most(self, tokens: int) -> Shape:
        """The same, or two or more sequences of at most so many tokens together."""
        if self.batch * self.length <= tokens:
            return self
        length = min(self.length, tokens // 2)
        return replace(self, batch=tokens // length, length=length)


class Floor(NamedTuple):
    """What no implementation can avoid: bytes between memory and processor, and operations of matrix products."""

    forward_bytes: float
    backward_bytes: float = 0
    forward_flops: float = 0
    backward_flops: float = 0

    def of(self, part: str) -> tuple[float, float]:
        """Bytes and operations of "forward", "backward" or "both"."""
        forward, backward = (self.forward_bytes, self.forward_flops), (self.backward_bytes, self.backward_flops)
        both = (forward[0] + backward[0], forward[1] + backward[1])
        return {"forward": forward, "backward": backward, "both": both}[part]


@dataclass(frozen=True)
class Op:
    """How to measure one op.

    Args:
        name: that of `fgrl.ops`.
        shapes: cases of each suite of `SUITES`.
        make: the inputs of a shape on a device, always the same.
        call: `call(fgrl.ops, inputs)` runs the op, and with `fgrl.reference` the specification.
        floor: bytes and operations for inputs of a shape.
        gradients: the inputs that get a gradient: of the first output, weighted by `inputs["output_grad"]` if any.
        eager: plain PyTorch as people write it, where that is not the reference itself.
        peers: name -> what returns the peer's function for such inputs, or raises `Unavailable`.
        not_compiled: why torch.compile is not tried on a shape; "" where it is.
        checked_tokens: most tokens on which results are compared with float64, which takes its time and memory.
    """

    name: str
    shapes: Mapping[str, tuple[Shape, ...]]
    make: Callable[[Shape, torch.device], Inputs]
    call: Callable[[Any, Inputs], Outputs]
    floor: Callable[[Inputs], Floor]
    gradients: tuple[str, ...] = ()
    eager: Run | None = None
    peers: Mapping[str, Callable[[Inputs], Run]] = field(default_factory=dict)
    not_compiled: Callable[[Shape], str] = lambda shape: ""
    checked_tokens: int = 1 << 40

    @property
    def parts(self) -> tuple[str, ...]:
        """What is timed: forward alone, or forward, backward and both."""
        return ("forward", "backward", "both") if self.gradients else ("forward",)


@cache
def registry() -> dict[str, Op]:
    """Every op, by name, in the order of the documentation."""
    return {name: import_module(f"benchmarks.ops.{name}").OP for name in backend.ops()}


def move(inputs: Inputs, device: torch.device) -> Inputs:
    """The inputs on another device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def widen(inputs: Inputs) -> Inputs:
    """The inputs with every floating-point tensor in float64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def with_leaves(inputs: Inputs, gradients: Iterable[str]) -> Inputs:
    """A copy in memory of its own, in which the named tensors collect gradients."""
    copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    for name in gradients:
        copies[name].requires_grad_()
    return copies
