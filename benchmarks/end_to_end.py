"""One PPO update step of a decoder: old and reference log-probabilities, values, advantages, policy and value update.

The step is the same for every variant; a `Toolkit` says with which functions its parts are computed. Rollouts are made
up: how they were sampled does not matter to the step's time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fgrl
from benchmarks import measure, memory, peers, tables
from benchmarks.decoder import SIZES, Decoder
from benchmarks.ops import linear_logprobs
from benchmarks.registry import Inputs, Unavailable
from fgrl import reference

GAMMA, LAM, KL_COEF, CLIP = 1.0, 0.95, 0.05, 0.2
LOSS_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Toolkit:
    """How a variant computes the parts of a step; tensors are `[B, T]`, hidden states `[B, T, D]`."""

    logprobs: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    advantages: Callable[[Inputs], tuple[Tensor, Tensor]]
    policy_loss: Callable[[Tensor, Tensor, Inputs], Tensor]
    value_loss: Callable[[Tensor, Inputs], Tensor]
    scalar_head: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """Which model, and how many responses of at most how many tokens."""

    model: str
    batch: int
    length: int
    dtype: torch.dtype
    rounds: int


PLANS = {
    "tiny": Plan("tiny", 2, 9, torch.float32, 1),
    "quick": Plan("small", 4, 64, torch.float32, 2),
    "cpu": Plan("small", 8, 256, torch.float32, 5),
    "gpu": Plan("SmolLM2-135M", 16, 1024, torch.bfloat16, 5),
}


def fused(ops: Any) -> Toolkit:
    """The step on `fgrl.ops`; on `fgrl.reference` it is plain PyTorch."""

    def advantages(batch: Inputs) -> tuple[Tensor, Tensor]:
        names = ("rewards", "old_values", "old_logprobs", "ref_logprobs", "mask")
        found = ops.token_advantages(*(batch[name] for name in names), kl_coef=KL_COEF, gamma=GAMMA, lam=LAM)
        return ops.whiten(found.advantages, batch["mask"], found.moments), found.returns

    def policy_loss(hidden: Tensor, weight: Tensor, batch: Inputs) -> Tensor:
        tensors = (batch[name] for name in ("targets", "old_logprobs", "advantages", "mask"))
        return ops.linear_ppo_loss(hidden, weight, *tensors).loss

    return Toolkit(
        logprobs=lambda hidden, weight, targets, mask: ops.linear_logprobs(hidden, weight, targets, mask=mask),
        advantages=advantages,
        policy_loss=policy_loss,
        value_loss=lambda values, b: ops.value_loss(values, b["old_values"], b["returns"], b["mask"], clip=CLIP).loss,
        scalar_head=lambda hidden, weight: ops.token_reward_head(hidden, weight),
    )


def eager() -> Toolkit:
    """The step as people write it: whole logits, a loop over time, masks that select rows."""

    def logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        return linear_logprobs.from_logits(hidden, weight, targets, mask, torch.float32)

    def policy_loss(hidden: Tensor, weight: Tensor, batch: Inputs) -> Tensor:
        found = logprobs(hidden, weight, batch["targets"], batch["mask"])
        return reference.ppo_loss(found, batch["old_logprobs"], batch["advantages"], batch["mask"]).loss

    return replace(
        fused(reference),
        logprobs=logprobs,
        policy_loss=policy_loss,
        scalar_head=lambda hidden, weight: F.linear(hidden, weight[None])[..., 0].float(),
    )


def verl() -> Toolkit:
    """verl's GAE, policy and value loss, and its log-probabilities without logits."""
    core, config = peers.load("verl.trainer.ppo.core_algos"), peers.verl_actor_config()
    chunked = peers.load("verl.utils.experimental.torch_functional").FusedLinearForPPO()

    def logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        found = chunked(hidden.flatten(0, 1), weight, targets.flatten())[0]
        return torch.where(mask, found.view(mask.shape), 0.0)

    return _on_verl(core, config, logprobs)


def liger() -> Toolkit:
    """Liger's log-probabilities without logits, the rest verl's: Liger's PPO losses take one advantage a sequence."""
    core, config = peers.load("verl.trainer.ppo.core_algos"), peers.verl_actor_config()
    base = peers.load("liger_kernel.chunked_loss.fused_linear_ppo").LigerFusedLinearPPOBase

    def logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, base.chunk_forward(hidden, weight, targets), 0.0)

    return _on_verl(core, config, logprobs)


def _on_verl(core: Any, config: Any, logprobs: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Toolkit:
    def advantages(batch: Inputs) -> tuple[Tensor, Tensor]:
        mask = batch["mask"].float()
        rewards = batch["rewards"] - KL_COEF * core.kl_penalty(batch["old_logprobs"], batch["ref_logprobs"], "kl")
        return core.compute_gae_advantage_return(rewards, batch["old_values"], mask, GAMMA, LAM)

    def policy_loss(hidden: Tensor, weight: Tensor, batch: Inputs) -> Tensor:
        found = logprobs(hidden, weight, batch["targets"], batch["mask"])
        tensors = (batch["old_logprobs"], found, batch["advantages"], batch["mask"])
        return core.compute_policy_loss_vanilla(*tensors, config=config)[0]

    def value_loss(values: Tensor, batch: Inputs) -> Tensor:
        return core.compute_value_loss(values, batch["returns"], batch["old_values"], batch["mask"].float(), CLIP)[0]

    return replace(eager(), logprobs=logprobs, advantages=advantages, policy_loss=policy_loss, value_loss=value_loss)


TOOLKITS: dict[str, Callable[[], Toolkit]] = {
    measure.EAGER: eager,
    measure.OURS: lambda: fused(fgrl.ops),
    "verl": verl,
    "Liger + verl": liger,
}


class Trainee:
    """Policy, reference and value model with their optimizer, the same at the start for every variant."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        torch.manual_seed(0)
        size = SIZES[plan.model]
        self.policy, self.critic, self.reference = (Decoder(size).to(device, plan.dtype) for _ in range(3))
        self.value_weight = nn.Parameter(torch.zeros(size.hidden, device=device, dtype=plan.dtype))
        self.parameters = [*self.policy.parameters(), *self.critic.parameters(), self.value_weight]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5)
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(size.vocab, (plan.batch, plan.length + 1), generator=generator).to(device)
        self.rewards = torch.randn(plan.batch, plan.length, generator=generator).to(device)
        lengths = torch.randint(plan.length // 4, plan.length + 1, (plan.batch, 1), generator=generator)
        self.mask = (torch.arange(plan.length) < lengths).to(device)

    def step(self, kit: Toolkit) -> tuple[Tensor, Tensor, Tensor]:
        """One update; the policy's and the value loss, and the norm of all gradients."""
        inputs, targets = self.tokens[:, :-1], self.tokens[:, 1:]
        with torch.no_grad():
            batch: Inputs = {"rewards": self.rewards, "mask": self.mask, "targets": targets}
            for name, model in (("old_logprobs", self.policy), ("ref_logprobs", self.reference)):
                batch[name] = kit.logprobs(model(inputs), model.lm_head, targets, self.mask)
            batch["old_values"] = kit.scalar_head(self.critic(inputs), self.value_weight)
            batch["advantages"], batch["returns"] = kit.advantages(batch)
        policy_loss = kit.policy_loss(self.policy(inputs), self.policy.lm_head, batch)
        policy_loss.backward()
        value_loss = kit.value_loss(kit.scalar_head(self.critic(inputs), self.value_weight), batch)
        value_loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return policy_loss.detach(), value_loss.detach(), norm


def run(suite: str, device: torch.device) -> dict[str, Any]:
    """Time and peak memory of each variant, after checking that all have PyTorch's losses and gradient norm."""
    plan = PLANS[suite]
    cells: dict[str, dict[str, Any]] = {}
    trainees: dict[str, tuple[Trainee, Toolkit]] = {}
    wanted: list[float] | None = None
    for name, build in TOOLKITS.items():
        try:
            kit = build()
            trainee = Trainee(plan, device)
            losses = [float(loss) for _ in range(2) for loss in trainee.step(kit)]
        except Exception as error:  # a peer's failure is its result
            status = "absent" if isinstance(error, Unavailable) else "failed"
            cells[name] = {"status": status, "reason": str(error).splitlines()[0]}
            continue
        wanted = wanted or losses
        off = max(abs(loss - want) / max(abs(want), 1.0) for loss, want in zip(losses, wanted, strict=True))
        cells[name] = {"status": "ok" if off < LOSS_TOLERANCE else "wrong", "reason": "", "losses": losses}
        if off < LOSS_TOLERANCE:
            trainees[name] = (trainee, kit)
        else:
            cells[name]["reason"] = f"a loss or the gradient differs by {100 * off:.1f} %"
    times: dict[str, list[float]] = {name: [] for name in trainees}
    for _ in range(plan.rounds):
        for name, (trainee, kit) in trainees.items():
            start = perf_counter()
            float(trainee.step(kit)[0])  # waits for a GPU
            times[name].append(perf_counter() - start)
    for name, (trainee, kit) in trainees.items():
        peak = memory.peak(lambda trainee=trainee, kit=kit: trainee.step(kit), device)
        cells[name] |= {"seconds": {"step": measure.percentiles(times[name])}, "peak_bytes": peak}
    tokens = int(Trainee(plan, device).mask.sum())
    return {
        "model": plan.model,
        "batch": plan.batch,
        "length": plan.length,
        "dtype": str(plan.dtype),
        "tokens": tokens,
        "variants": cells,
    }


def table(step: dict[str, Any]) -> tables.Table:
    """One line a variant."""
    rows, notes = [], []
    case = {"variants": step["variants"]}
    for name, cell in step["variants"].items():
        seconds = tables.median(cell, "step")
        rate = tables.ABSENT if seconds is None else f"{step['tokens'] / seconds:.0f}"
        ratio = tables.ratio_cell(case, name, "step")
        rows.append([name, tables.time_cell(cell, "step"), ratio, rate, tables.memory_cell(cell)])
        if cell["reason"]:
            notes.append(f"{name}: {cell['status']}, {cell['reason']}")
    header = ["one update step", "time", "relative", "tokens/s", "peak beyond the models"]
    return tables.Table(header, rows, notes)


def conditions(step: dict[str, Any]) -> str:
    """What was measured, in a sentence."""
    return (
        f"Policy, critic and reference of the size {step['model']} with random weights, {step['batch']} responses of "
        f"up to {step['length']} tokens ({step['tokens']} valid), {step['dtype'].removeprefix('torch.')}, AdamW: old "
        "and reference log-probabilities, values, advantages, policy and value update."
    )
