"""`linear_ppo_loss`: from hidden states to the loss and its gradients, three matrix products in all."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import peers
from benchmarks.ops import linear_logprobs
from benchmarks.ops._inputs import with_float_mask
from benchmarks.registry import Floor, Inputs, Op, Outputs, Run, Shape
from fgrl import reference

WIDE = Shape(1, 8192, 4096, 131072, dtype=torch.bfloat16)  # a head of 8B models, all 8192 rows valid


def make(shape: Shape, device: torch.device) -> Inputs:
    """One advantage a sequence, the only kind that Liger takes; ours does not know the difference."""
    inputs = with_float_mask(linear_logprobs.make(shape, device))
    mask, weight = inputs["mask"], inputs["weight"]
    rows = zip(inputs["hidden"], inputs["targets"], mask, strict=True)
    old = torch.stack([reference.linear_logprobs(hidden, weight, row, mask=valid) for hidden, row, valid in rows])
    generator = torch.Generator().manual_seed(1)
    noise = 0.2 * torch.randn(old.shape, generator=generator)
    inputs["old_logprobs"] = old + noise.to(device) * mask
    inputs["sequence_advantages"] = torch.randn(len(old), generator=generator).to(device)
    inputs["advantages"] = inputs["sequence_advantages"][:, None].expand(old.shape).contiguous()
    inputs["tokens"] = mask.sum()
    del inputs["output_grad"]
    return inputs


def call(ops: Any, inputs: Inputs) -> Outputs:
    tensors = (inputs[name] for name in ("hidden", "weight", "targets", "old_logprobs", "advantages", "mask"))
    loss, stats, logprobs = ops.linear_ppo_loss(*tensors)
    return loss, logprobs, stats["entropy"], stats["clip_fraction"]


def eager(inputs: Inputs) -> Outputs:
    """Logits, log-softmax, gather, entropy, surrogate, as trainers write it."""
    mask = inputs["mask"]
    logits = torch.nn.functional.linear(inputs["hidden"][mask], inputs["weight"]).to(inputs["old_logprobs"].dtype)
    log_softmax = torch.log_softmax(logits, -1)
    logprobs = log_softmax.gather(-1, inputs["targets"][mask][:, None])[:, 0]
    with torch.no_grad():
        entropy = -(log_softmax.exp() * log_softmax).sum(-1).mean()
    advantages = inputs["advantages"][mask]
    ratio = (logprobs - inputs["old_logprobs"][mask]).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)
    laid_out = logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs.detach())
    return torch.maximum(plain, clipped).mean(), laid_out, entropy, (clipped > plain).float().mean()


def floor(inputs: Inputs) -> Floor:
    """The three products are those of both passes together: gradients may well be computed in the forward pass."""
    return linear_logprobs.floor(inputs)


def liger(inputs: Inputs) -> Run:
    """Without the entropy, which it does not compute."""
    loss = peers.load("liger_kernel.chunked_loss").LigerFusedLinearGRPOLoss(
        beta=0.0, use_ref_model=False, loss_type="dapo"
    )

    def run(i: Inputs) -> Outputs:
        value, _ = loss(
            i["hidden"],
            i["weight"],
            i["targets"],
            i["float_mask"],
            i["sequence_advantages"],
            old_per_token_logps=i["old_logprobs"],
            num_items_in_batch=i["tokens"],
        )
        return value, None, None, None

    return run


def composed(name: str) -> Any:
    """A peer's log-probabilities, then verl's policy loss: what their users run."""

    def build(inputs: Inputs) -> Run:
        logprobs_of = linear_logprobs.OP.peers[name](inputs)
        loss_of = peers.load("verl.trainer.ppo.core_algos").compute_policy_loss_vanilla
        config = peers.verl_actor_config()

        def run(i: Inputs) -> Outputs:
            (logprobs,) = logprobs_of(i)
            assert logprobs is not None
            loss, metrics = loss_of(i["old_logprobs"], logprobs, i["advantages"], i["mask"], config=config)
            return loss, logprobs.detach(), None, torch.tensor(metrics["actor/pg_clipfrac"])

        return run

    return build


OP = Op(
    name="linear_ppo_loss",
    shapes={**linear_logprobs.OP.shapes, "gpu": (WIDE, *linear_logprobs.OP.shapes["gpu"])},
    make=make,
    call=call,
    floor=floor,
    gradients=("hidden", "weight"),
    eager=eager,
    peers={"Liger": liger, "TRL + verl": composed("TRL"), "verl": composed("verl")},
    checked_tokens=1024,
)
