"""`whiten`: reads the advantages twice unless they fit a cache; the floor counts once."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import peers
from benchmarks.ops._inputs import padded_only, read, rollouts, with_float_mask
from benchmarks.registry import Floor, Inputs, Op, Outputs, Run, Shape


def make(shape: Shape, device: torch.device) -> Inputs:
    return with_float_mask(rollouts(shape, device, "advantages"))


def call(ops: Any, inputs: Inputs) -> Outputs:
    return (ops.whiten(inputs["advantages"], inputs["mask"]),)


def floor(inputs: Inputs) -> Floor:
    return Floor(read(inputs, "advantages") + 4 * inputs["advantages"].numel())


def verl(inputs: Inputs) -> Run:
    padded_only(inputs)
    function = peers.load("verl.utils.torch_functional").masked_whiten
    return lambda i: (function(i["advantages"], i["float_mask"]),)


OP = Op(
    name="whiten",
    shapes={
        "tiny": (Shape(3, 17),),
        "quick": (Shape(64, 256),),
        "cpu": (Shape(512, 64), Shape(256, 2048)),
        "gpu": (Shape(512, 2048), Shape(256, 8192)),
    },
    make=make,
    call=call,
    floor=floor,
    peers={"verl": verl},
)
