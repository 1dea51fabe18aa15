"""`token_advantages`: four tensors in, three out, and the moments."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import peers
from benchmarks.ops._inputs import padded_only, read, rollouts, with_float_mask
from benchmarks.ops.gae import GAMMA, LAM, unrolled
from benchmarks.registry import Floor, Inputs, Op, Outputs, Run, Shape

KL_COEF = 0.05
NAMES = ("token_rewards", "values", "logprobs", "ref_logprobs")


def make(shape: Shape, device: torch.device) -> Inputs:
    inputs = with_float_mask(rollouts(shape, device, *NAMES))
    inputs["ref_logprobs"] = inputs["logprobs"] + 0.1 * inputs["ref_logprobs"]
    return inputs


def call(ops: Any, inputs: Inputs) -> Outputs:
    tensors = (inputs[name] for name in (*NAMES, "mask"))
    return ops.token_advantages(*tensors, kl_coef=KL_COEF, gamma=GAMMA, lam=LAM, cu_seqlens=inputs["cu_seqlens"])


def floor(inputs: Inputs) -> Floor:
    return Floor(read(inputs, *NAMES) + 3 * 4 * inputs["values"].numel())


def verl(inputs: Inputs) -> Run:
    """KL penalty, GAE and the whitening that its GAE always does."""
    padded_only(inputs)
    core = peers.load("verl.trainer.ppo.core_algos")

    def run(i: Inputs) -> Outputs:
        kl = core.kl_penalty(i["logprobs"], i["ref_logprobs"], "kl") * i["float_mask"]
        rewards = i["token_rewards"] - KL_COEF * kl
        _, returns = core.compute_gae_advantage_return(rewards, i["values"], i["float_mask"], GAMMA, LAM)
        return None, returns, kl, None

    return run


def openrlhf(inputs: Inputs) -> Run:
    padded_only(inputs)

    def run(i: Inputs) -> Outputs:
        kl = i["logprobs"] - i["ref_logprobs"]
        rewards = i["token_rewards"] - KL_COEF * kl
        advantages, returns = peers.openrlhf_gae(rewards, i["values"], i["float_mask"], GAMMA, LAM)
        return advantages, returns, kl, None

    return run


OP = Op(
    name="token_advantages",
    shapes={
        "tiny": (Shape(3, 17),),
        "quick": (Shape(64, 256),),
        "cpu": (Shape(512, 64), Shape(256, 2048), Shape(256, 2048, packed=True)),
        "gpu": (Shape(512, 2048), Shape(512, 2048, packed=True), Shape(512, 2048, dtype=torch.bfloat16)),
    },
    make=make,
    call=call,
    floor=floor,
    peers={"verl": verl, "OpenRLHF": openrlhf},
    not_compiled=unrolled(64),
)
