"""`ppo_loss`: three tensors in, a gradient out. The method of a shape is the `loss` of its configuration."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import peers
from benchmarks.ops._inputs import nbytes, padded_only, read, rollouts, with_float_mask
from benchmarks.registry import Floor, Inputs, Op, Outputs, Run, Shape
from fgrl.ops import PPOLossConfig

NAMES = ("logprobs", "old_logprobs", "advantages")
CONFIGS = {
    "": PPOLossConfig(),
    "gspo-token": PPOLossConfig(loss="gspo-token", aggregation="seq-mean-token-mean"),
    "gmpo": PPOLossConfig(loss="gmpo", aggregation="seq-mean-token-mean"),
    "cispo": PPOLossConfig(loss="cispo"),
    "sapo": PPOLossConfig(loss="sapo", aggregation="seq-mean-token-mean"),
    "reinforce": PPOLossConfig(loss="reinforce"),
}
VERL = {"": "vanilla", "gspo-token": "gspo", "gmpo": "geo_mean", "cispo": "cispo", "sapo": "sapo", "reinforce": "gpg"}


def make(shape: Shape, device: torch.device) -> Inputs:
    inputs = with_float_mask(rollouts(shape, device, *NAMES))
    inputs["old_logprobs"] = inputs["logprobs"] + 0.2 * inputs["old_logprobs"]
    return inputs | {"method": shape.method}


def call(ops: Any, inputs: Inputs) -> Outputs:
    tensors = (inputs[name] for name in (*NAMES, "mask"))
    loss, stats = ops.ppo_loss(*tensors, cu_seqlens=inputs["cu_seqlens"], config=CONFIGS[inputs["method"]])
    if inputs["method"]:
        return (loss,)
    return loss, stats["clip_fraction"], stats["approx_kl"], stats["ratio_max"]


def floor(inputs: Inputs) -> Floor:
    return Floor(read(inputs, *NAMES), nbytes(inputs["logprobs"]))


def verl(inputs: Inputs) -> Run:
    """Reads its statistics on the host. What it calls GSPO is GSPO-token."""
    padded_only(inputs)
    method = inputs["method"]
    function = getattr(peers.load("verl.trainer.ppo.core_algos"), f"compute_policy_loss_{VERL[method]}")
    options = {"config": peers.verl_actor_config(), "loss_agg_mode": CONFIGS[method].aggregation}

    def run(i: Inputs) -> Outputs:
        loss, metrics = function(i["old_logprobs"], i["logprobs"], i["advantages"], i["mask"], **options)
        if method:
            return (loss,)
        return loss, torch.tensor(metrics["actor/pg_clipfrac"]), torch.tensor(metrics["actor/ppo_kl"]), None

    return run


OP = Op(
    name="ppo_loss",
    shapes={
        "tiny": (Shape(3, 17), Shape(3, 17, method="gspo-token")),
        "quick": (Shape(64, 256),),
        "cpu": (
            Shape(512, 64),
            Shape(256, 2048),
            Shape(256, 2048, packed=True),
            *(Shape(256, 2048, method=method) for method in CONFIGS if method),
        ),
        "gpu": (
            Shape(512, 2048),
            Shape(256, 8192),
            Shape(512, 2048, dtype=torch.bfloat16),
            *(Shape(512, 2048, method=method) for method in CONFIGS if method),
        ),
    },
    make=make,
    call=call,
    floor=floor,
    gradients=("logprobs",),
    peers={"verl": verl},
)
