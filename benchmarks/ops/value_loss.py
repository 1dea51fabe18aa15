"""`value_loss`: three tensors in, a gradient out."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import peers
from benchmarks.ops._inputs import nbytes, padded_only, read, rollouts, with_float_mask
from benchmarks.registry import Floor, Inputs, Op, Outputs, Run, Shape

NAMES = ("values", "old_values", "returns")
CLIP = 0.2


def make(shape: Shape, device: torch.device) -> Inputs:
    inputs = with_float_mask(rollouts(shape, device, *NAMES))
    inputs["old_values"] = inputs["values"] + 0.2 * inputs["old_values"]
    return inputs


def call(ops: Any, inputs: Inputs) -> Outputs:
    tensors = (inputs[name] for name in (*NAMES, "mask"))
    loss, stats = ops.value_loss(*tensors, clip=CLIP, cu_seqlens=inputs["cu_seqlens"])
    return loss, stats["clip_fraction"]


def floor(inputs: Inputs) -> Floor:
    return Floor(read(inputs, *NAMES), nbytes(inputs["values"]))


def verl(inputs: Inputs) -> Run:
    padded_only(inputs)
    function = peers.load("verl.trainer.ppo.core_algos").compute_value_loss
    return lambda i: function(i["values"], i["returns"], i["old_values"], i["float_mask"], CLIP)


OP = Op(
    name="value_loss",
    shapes={
        "tiny": (Shape(3, 17),),
        "quick": (Shape(64, 256),),
        "cpu": (Shape(512, 64), Shape(256, 2048)),
        "gpu": (Shape(512, 2048), Shape(256, 8192)),
    },
    make=make,
    call=call,
    floor=floor,
    gradients=("values",),
    peers={"verl": verl},
)
