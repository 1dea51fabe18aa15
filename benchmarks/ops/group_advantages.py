"""`group_advantages`: a mask in, a number a token out; with token rewards one more tensor in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.ops._inputs import padded_only, read, rollouts, with_float_mask
from benchmarks.ops.gae import unrolled
from benchmarks.registry import Floor, Inputs, Op, Outputs, Run, Shape, Unavailable

GROUP, GAMMA = 8, 0.99
OUTCOME: dict[str, dict[str, Any]] = {
    "GRPO": {},
    "RLOO": {"baseline": "leave-one-out", "scale": "none"},
}
RETURNS = {"baseline": "none", "scale": "none", "gamma": GAMMA}  # REINFORCE++ before it is whitened


def make(shape: Shape, device: torch.device) -> Inputs:
    inputs = with_float_mask(rollouts(shape, device, "token_rewards"))
    generator = torch.Generator().manual_seed(1)
    inputs["method"] = shape.method
    inputs["groups"] = (torch.arange(shape.batch) // GROUP)[torch.randperm(shape.batch, generator=generator)].to(device)
    inputs["index"] = inputs["groups"].cpu().numpy()  # how verl keeps it
    if shape.method in OUTCOME:  # the outcome alone, which verl keeps as the reward of the last token
        inputs["rewards"] = torch.randn(shape.batch, generator=generator).to(device)
        mask = inputs["mask"]
        if mask is None:
            inputs["mask"] = torch.ones_like(inputs["token_rewards"], dtype=torch.bool)
        else:
            last = mask & ~F.pad(mask[:, 1:], (0, 1))
            inputs["token_rewards"] = torch.where(last, inputs["rewards"][:, None], 0.0)
    return inputs


def call(ops: Any, inputs: Inputs) -> Outputs:
    mask, cu_seqlens = inputs["mask"], inputs["cu_seqlens"]
    if inputs["method"] in OUTCOME:
        options = OUTCOME[inputs["method"]] | {"cu_seqlens": cu_seqlens}
        return (ops.group_advantages(inputs["rewards"], inputs["groups"], mask, **options),)
    options = RETURNS | {"token_rewards": inputs["token_rewards"], "cu_seqlens": cu_seqlens}
    return (ops.group_advantages(None, inputs["groups"], mask, **options),)


def floor(inputs: Inputs) -> Floor:
    names = () if inputs["method"] in OUTCOME else ("token_rewards",)
    return Floor(read(inputs, *names) + 4 * inputs["token_rewards"].numel())


def verl(inputs: Inputs) -> Run:
    """Takes outcomes as the sum of the tokens' rewards. Its REINFORCE++ whitens besides, a small part of its time."""
    padded_only(inputs)
    core = peers.load("verl.trainer.ppo.core_algos")
    if inputs["method"] == "REINFORCE++":
        config = peers.load("verl.trainer.config").AlgoConfig(gamma=GAMMA)
        returns = core.compute_reinforce_plus_plus_outcome_advantage
        return lambda i: (returns(i["token_rewards"], i["float_mask"], config=config)[1],)
    function = {"GRPO": core.compute_grpo_outcome_advantage, "RLOO": core.compute_rloo_outcome_advantage}
    run = function[inputs["method"]]
    return lambda i: (run(i["token_rewards"], i["float_mask"], i["index"])[0],)


def verl_vectorized(inputs: Inputs) -> Run:
    padded_only(inputs)
    core = peers.load("verl.trainer.ppo.core_algos")
    if inputs["method"] == "REINFORCE++":
        raise Unavailable("has no such function")
    function = {
        "GRPO": core.compute_grpo_vectorized_outcome_advantage,
        "RLOO": core.compute_rloo_vectorized_outcome_advantage,
    }
    run = function[inputs["method"]]
    return lambda i: (run(i["token_rewards"], i["float_mask"], i["index"])[0],)


def trl(inputs: Inputs) -> Run:
    """Its formula, which stands amid the trainer, with 1e-6 for its 1e-4: groups of one size, one behind the other."""
    padded_only(inputs)
    if inputs["method"] == "REINFORCE++" or len(inputs["groups"]) % GROUP:
        raise Unavailable("has no such formula, or groups of one size alone")
    order = inputs["groups"].argsort(stable=True)
    inputs["order"] = order

    def run(i: Inputs) -> Outputs:
        grouped = i["rewards"][i["order"]].view(-1, GROUP)
        if i["method"] == "GRPO":
            advantages = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-6)
        else:
            advantages = grouped - (grouped.sum(1, keepdim=True) - grouped) / (GROUP - 1)
        laid: Tensor = torch.empty_like(i["rewards"])
        laid[i["order"]] = advantages.view(-1)
        return (laid[:, None] * i["float_mask"],)

    return run


OP = Op(
    name="group_advantages",
    shapes={
        "tiny": (Shape(8, 17, method="GRPO"), Shape(8, 17, method="REINFORCE++", packed=True)),
        "quick": (Shape(64, 256, method="GRPO"), Shape(64, 256, method="REINFORCE++")),
        "cpu": (
            Shape(256, 2048, method="GRPO"),
            Shape(256, 2048, method="RLOO"),
            Shape(256, 2048, method="REINFORCE++"),
            Shape(256, 2048, method="REINFORCE++", packed=True),
        ),
        "gpu": (
            Shape(1024, 2048, method="GRPO"),
            Shape(1024, 2048, method="REINFORCE++"),
            Shape(256, 8192, method="REINFORCE++", packed=True),
        ),
    },
    make=make,
    call=call,
    floor=floor,
    peers={"verl": verl, "verl vectorized": verl_vectorized, "TRL's formula": trl},
    not_compiled=lambda shape: unrolled(64)(shape) if shape.method not in OUTCOME else "",
)
