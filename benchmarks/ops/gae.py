"""`gae`: one number a token in three tensors, so that memory is the floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import peers
from benchmarks.ops._inputs import padded_only, read, rollouts, with_float_mask
from benchmarks.registry import Floor, Inputs, Op, Outputs, Run, Shape

GAMMA, LAM = 0.99, 0.95


def make(shape: Shape, device: torch.device) -> Inputs:
    inputs = with_float_mask(rollouts(shape, device, "rewards", "values"))
    mask = inputs["mask"]
    if mask is not None:  # what torchrl takes besides, computed by its collector
        ends = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
        inputs["done"] = ends[..., None]
        inputs["next_values"] = torch.nn.functional.pad(inputs["values"][:, 1:], (0, 1))
    return inputs


def call(ops: Any, inputs: Inputs) -> Outputs:
    names = ("rewards", "values", "mask")
    return ops.gae(*(inputs[name] for name in names), gamma=GAMMA, lam=LAM, cu_seqlens=inputs["cu_seqlens"])


def floor(inputs: Inputs) -> Floor:
    return Floor(read(inputs, "rewards", "values") + 2 * 4 * inputs["rewards"].numel())


def verl(inputs: Inputs) -> Run:
    """Its advantages are whitened as well, a small part of its time, so only its returns can be compared."""
    padded_only(inputs)
    function = peers.load("verl.trainer.ppo.core_algos").compute_gae_advantage_return
    return lambda i: (None, function(i["rewards"], i["values"], i["float_mask"], GAMMA, LAM)[1])


def openrlhf(inputs: Inputs) -> Run:
    padded_only(inputs)
    return lambda i: peers.openrlhf_gae(i["rewards"], i["values"], i["float_mask"], GAMMA, LAM)


def torchrl(inputs: Inputs) -> Run:
    padded_only(inputs)
    function = peers.load("torchrl.objectives.value.functional").vec_generalized_advantage_estimate

    def run(i: Inputs) -> Outputs:
        values, following, rewards = (i[name][..., None] for name in ("values", "next_values", "rewards"))
        advantages, returns = function(GAMMA, LAM, values, following, rewards, i["done"])
        return advantages[..., 0], returns[..., 0]

    return run


def unrolled(longest: int) -> Callable[[Shape], str]:
    """Why torch.compile is not tried: it unrolls the reference's loop over time."""
    return lambda shape: "" if shape.length <= longest else "unrolls the loop over time: minutes to compile"


OP = Op(
    name="gae",
    shapes={
        "tiny": (Shape(3, 17), Shape(3, 17, packed=True)),
        "quick": (Shape(64, 256), Shape(64, 256, packed=True)),
        "cpu": (Shape(512, 64), Shape(256, 2048), Shape(256, 2048, packed=True), Shape(32, 8192)),
        "gpu": (Shape(1024, 128), Shape(512, 2048), Shape(512, 2048, packed=True), Shape(256, 8192)),
    },
    make=make,
    call=call,
    floor=floor,
    peers={"verl": verl, "OpenRLHF": openrlhf, "TorchRL": torchrl},
    not_compiled=unrolled(64),
)
