"""`ppo_loss`: three tensors in, a gradient out."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import peers
from benchmarks.ops._inputs import nbytes, padded_only, read, rollouts, with_float_mask
from benchmarks.registry import Floor, Inputs, Op, Outputs, Run, Shape

NAMES = ("logprobs", "old_logprobs", "advantages")


def make(shape: Shape, device: torch.device) -> Inputs:
    inputs = with_float_mask(rollouts(shape, device, *NAMES))
    inputs["old_logprobs"] = inputs["logprobs"] + 0.2 * inputs["old_logprobs"]
    return inputs


def call(ops: Any, inputs: Inputs) -> Outputs:
    tensors = (inputs[name] for name in (*NAMES, "mask"))
    loss, stats = ops.ppo_loss(*tensors, cu_seqlens=inputs["cu_seqlens"])
    return loss, stats["clip_fraction"], stats["approx_kl"], stats["ratio_max"]


def floor(inputs: Inputs) -> Floor:
    return Floor(read(inputs, *NAMES), nbytes(inputs["logprobs"]))


def verl(inputs: Inputs) -> Run:
    """Reads its three statistics on the host."""
    padded_only(inputs)
    function = peers.load("verl.trainer.ppo.core_algos").compute_policy_loss_vanilla
    config = peers.verl_actor_config()

    def run(i: Inputs) -> Outputs:
        loss, metrics = function(i["old_logprobs"], i["logprobs"], i["advantages"], i["mask"], config=config)
        return loss, torch.tensor(metrics["actor/pg_clipfrac"]), torch.tensor(metrics["actor/ppo_kl"]), None

    return run


OP = Op(
    name="ppo_loss",
    shapes={
        "tiny": (Shape(3, 17),),
        "quick": (Shape(64, 256),),
        "cpu": (Shape(512, 64), Shape(256, 2048), Shape(256, 2048, packed=True)),
        "gpu": (Shape(512, 2048), Shape(256, 8192), Shape(512, 2048, dtype=torch.bfloat16)),
    },
    make=make,
    call=call,
    floor=floor,
    gradients=("logprobs",),
    peers={"verl": verl},
)
