"""`edit_preference_loss`: both sides of each pair in, both gradients out. No library has it: the peer is PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.ops._inputs import nbytes, rollouts
from benchmarks.registry import Floor, Inputs, Op, Outputs, Shape

SIDES = ("chosen", "rejected")


def make(shape: Shape, device: torch.device) -> Inputs:
    """A tenth of the tokens is edited."""
    inputs = rollouts(shape, device, *(f"{side}_rewards" for side in SIDES))
    generator = torch.Generator().manual_seed(1)
    for side in SIDES:
        edited = torch.rand(inputs["mask"].shape, generator=generator) < 0.1
        inputs[f"{side}_edits"] = edited.to(device) & inputs["mask"]
    return inputs


def call(ops: Any, inputs: Inputs) -> Outputs:
    tensors = [inputs[f"{side}_{what}"] for what in ("rewards", "edits") for side in SIDES]
    mask = inputs["mask"]
    return ops.edit_preference_loss(*tensors, chosen_mask=mask, rejected_mask=mask, unchanged_weight=0.1)


def floor(inputs: Inputs) -> Floor:
    read = sum(nbytes(inputs[f"{side}_{what}"]) for what in ("rewards", "edits") for side in SIDES)
    return Floor(read + nbytes(inputs["mask"]), sum(nbytes(inputs[f"{side}_rewards"]) for side in SIDES))


OP = Op(
    name="edit_preference_loss",
    shapes={
        "tiny": (Shape(3, 17),),
        "quick": (Shape(32, 256),),
        "cpu": (Shape(64, 128), Shape(256, 1024)),
        "gpu": (Shape(64, 512), Shape(1024, 2048)),
    },
    make=make,
    call=call,
    floor=floor,
    gradients=("chosen_rewards", "rejected_rewards"),
)
