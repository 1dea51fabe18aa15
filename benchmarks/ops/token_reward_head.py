"""`token_reward_head` with the model's final RMSNorm: hidden states in, one number a token out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.ops._inputs import nbytes
from benchmarks.registry import Floor, Inputs, Op, Outputs, Shape, move

EPS = 1e-6


def make(shape: Shape, device: torch.device) -> Inputs:
    """`batch` sequences of `length` tokens, packed as models of packed batches give them."""
    generator = torch.Generator().manual_seed(0)
    tokens, width = shape.batch * shape.length, shape.hidden
    inputs = {
        "hidden": torch.randn(tokens, width, generator=generator).to(shape.dtype),
        "weight": (torch.randn(width, generator=generator) / width**0.5).to(shape.dtype),
        "bias": torch.zeros((), dtype=shape.dtype),
        "norm_weight": (1 + 0.1 * torch.randn(width, generator=generator)).to(shape.dtype),
        "output_grad": torch.randn(tokens, generator=generator),
    }
    return move(inputs, device)


def call(ops: Any, inputs: Inputs) -> Outputs:
    norm = {"norm_weight": inputs["norm_weight"], "norm_eps": EPS}
    return (ops.token_reward_head(inputs["hidden"], inputs["weight"], inputs["bias"], **norm),)


def eager(inputs: Inputs) -> Outputs:
    """A norm and a linear layer, as a reward model without the op has them."""
    hidden = F.rms_norm(inputs["hidden"], inputs["norm_weight"].shape, inputs["norm_weight"], EPS)
    return (F.linear(hidden, inputs["weight"][None], inputs["bias"][None])[:, 0].to(inputs["output_grad"].dtype),)


def floor(inputs: Inputs) -> Floor:
    hidden, grad = nbytes(inputs["hidden"]), nbytes(inputs["output_grad"])
    return Floor(hidden + grad, 2 * hidden + grad)  # the gradient needs the states again, and writes as many


OP = Op(
    name="token_reward_head",
    shapes={
        "tiny": (Shape(2, 5, hidden=48),),
        "quick": (Shape(8, 256, hidden=576),),
        "cpu": (Shape(16, 512, hidden=576), Shape(8, 512, hidden=2048, dtype=torch.bfloat16)),
        "gpu": tuple(Shape(16, 2048, hidden=width, dtype=torch.bfloat16) for width in (576, 2048, 4096)),
    },
    make=make,
    call=call,
    floor=floor,
    gradients=("hidden", "weight", "bias", "norm_weight"),
    eager=eager,
)
