"""Peers' policy losses, restated: we agree where they are right, and the tests show where they are not.

Read from verl 0.9.1 (`trainer/ppo/core_algos.py`, `trainer/ppo/rollout_corr_helper.py`), TRL 1.16
(`trainer/grpo_trainer.py`) and Liger 0.8.5 (`chunked_loss/grpo_loss.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from numerics import gradients, make_mask
from torch import Tensor

import fgrl
from fgrl.ops import PPOLossConfig

LOW, HIGH = 0.2, 0.3


def draw(shape: tuple[int, int] = (6, 9), *, one_advantage: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    logprobs = -torch.rand(shape, dtype=torch.float64) * 3
    advantages = torch.randn(shape, dtype=torch.float64)
    mask = make_mask("holes", shape)
    assert mask is not None
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + 0.3 * torch.randn_like(logprobs) + 0.3 * torch.randn(shape[0], 1),
        "advantages": advantages[:, :1].expand(shape) if one_advantage else advantages,
    }, mask


def sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def clipped(ratio: Tensor, advantages: Tensor) -> Tensor:
    return torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - LOW, 1 + HIGH))


def verl_gspo(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    mean = sequence_mean(logprobs - old, mask).detach()
    return clipped(torch.exp((logprobs - logprobs.detach() + mean).clamp(max=10.0)), advantages)


def trl_gspo(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Liger's too, whose advantages are one a sequence."""
    return clipped(sequence_mean(logprobs - old, mask).exp(), advantages)


def verl_sapo(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """TRL's and Liger's too, less the clamp."""
    ratio, tau = torch.exp((logprobs - old).clamp(-20, 20)), torch.where(advantages > 0, 1.0, 1.05)
    return -advantages * torch.sigmoid(tau * (ratio - 1)) * (4 / tau)


def verl_cispo(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -(logprobs - old).exp().clamp(1 - LOW, 1 + HIGH).detach() * advantages * logprobs


def trl_cispo(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Bounded from above only, and `epsilon_high` is the bound itself. Liger's is the same."""
    return -(logprobs - old).exp().clamp(max=1 + HIGH).detach() * advantages * logprobs


def verl_gpg(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -logprobs * advantages


def agree(
    peer: Callable[..., Tensor], config: PPOLossConfig, inputs: dict[str, Tensor], mask: Tensor
) -> tuple[bool, bool]:
    """Whether the mean over tokens, and its gradient, are the peer's."""
    rest = (inputs["old_logprobs"], inputs["advantages"])

    def theirs(logprobs: Tensor) -> Tensor:
        return torch.where(mask, peer(logprobs, *rest, mask), 0.0).sum() / mask.sum()

    def ours(logprobs: Tensor) -> Tensor:
        return fgrl.ops.ppo_loss(logprobs, *rest, mask, config=config).loss

    logprobs = {"logprobs": inputs["logprobs"]}
    (loss, grad), (expected, expected_grad) = gradients(ours, logprobs), gradients(theirs, logprobs)
    return torch.allclose(loss, expected), torch.allclose(grad["logprobs"], expected_grad["logprobs"])


@pytest.mark.parametrize("one_advantage", [True, False], ids=["one advantage", "an advantage a token"])
@pytest.mark.parametrize(
    ("peer", "options"),
    [
        (verl_gspo, {"loss": "gspo-token"}),
        (trl_gspo, {"loss": "gspo"}),
        (verl_sapo, {"loss": "sapo"}),
        (verl_cispo, {"loss": "cispo"}),
        (trl_cispo, {"loss": "cispo", "clip_low": 1.0}),
        (verl_gpg, {"loss": "reinforce"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_agrees(peer: Callable[..., Tensor], options: dict[str, str], one_advantage: bool) -> None:
    inputs, mask = draw(one_advantage=one_advantage)
    config = PPOLossConfig(**({"clip_low": LOW, "clip_high": HIGH} | options))  # type: ignore[arg-type]
    assert agree(peer, config, inputs, mask) == (True, True)


def test_what_verl_calls_gspo_is_gspo_token() -> None:
    """The same loss, and for advantages that differ within a sequence another gradient than GSPO's objective has."""
    config = PPOLossConfig(loss="gspo", clip_low=LOW, clip_high=HIGH)
    assert agree(verl_gspo, config, *draw()) == (True, True)
    assert agree(verl_gspo, config, *draw(one_advantage=False)) == (True, False)


def verl_geo_mean(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    gap, sign = logprobs - old, advantages.sign()
    kept = sign * torch.min(sign * gap, sign * gap.clamp(-LOW, HIGH))
    ratio = torch.exp((kept * mask).sum(1) / (mask.sum(1) + 1e-8))
    return (-(advantages * mask).sum(1) / (mask.sum(1) + 1e-8) * ratio).mean()


def test_verl_geo_mean_agrees_but_counts_sequences_without_a_token() -> None:
    inputs, mask = draw()
    config = PPOLossConfig(loss="gmpo", clip_low=LOW, clip_high=HIGH, aggregation="seq-mean-token-mean")

    def ours(logprobs: Tensor) -> Tensor:
        return fgrl.ops.ppo_loss(logprobs, inputs["old_logprobs"], inputs["advantages"], mask, config=config).loss

    def theirs(logprobs: Tensor) -> Tensor:
        return verl_geo_mean(logprobs, inputs["old_logprobs"], inputs["advantages"], mask)

    logprobs = {"logprobs": inputs["logprobs"]}
    for a, b in zip(gradients(ours, logprobs), gradients(theirs, logprobs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # their 1e-8 in the denominators
    mask[-1] = False
    torch.testing.assert_close(ours(inputs["logprobs"]) * 5 / 6, theirs(inputs["logprobs"]), rtol=1e-6, atol=1e-9)


def verl_weights(gap: Tensor, mask: Tensor, level: str, floor: float | None, cap: float) -> Tensor:
    """Truncated by one threshold, "IcePop" (0 outside) by two."""
    total = gap if level == "token" else torch.where(mask, gap, 0.0).sum(1, keepdim=True)
    weight = total.clamp(-20, 20).exp().expand_as(gap) * mask
    if floor is None:
        return weight.clamp(max=cap)
    return torch.where((weight >= floor) & (weight <= cap), weight, 0.0)


@pytest.mark.parametrize("floor", [None, 0.7], ids=["truncated", "masked"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_rollout_correction_of_verl(level: str, floor: float | None) -> None:
    """TRL's four modes, `token_truncate` to `sequence_mask`, are the same with the bounds named clip_min, clip_max."""
    inputs, mask = draw(one_advantage=False)
    rollout = inputs["old_logprobs"] + 0.3 * torch.randn(6, 9)
    weights = verl_weights(inputs["old_logprobs"] - rollout, mask, level, floor, 1.4)
    assert floor is None or (weights[mask] == 0).any()
    config = PPOLossConfig(
        importance_level=level,  # type: ignore[arg-type]
        importance_floor=floor,
        importance_cap=1.4,
        importance_mode="truncate" if floor is None else "mask",
    )
    ratio = (inputs["logprobs"] - inputs["old_logprobs"]).exp()
    token_losses = torch.max(-inputs["advantages"] * ratio, -inputs["advantages"] * ratio.clamp(0.8, 1.2)) * weights
    theirs = torch.where(mask, token_losses, 0.0).sum() / mask.sum()
    ours = fgrl.ops.ppo_loss(**inputs, mask=mask, rollout_logprobs=rollout, config=config).loss
    torch.testing.assert_close(ours, theirs)


def test_clip_cov_and_kl_cov_are_a_choice_of_tokens() -> None:
    """verl draws (Clip-Cov) or ranks (KL-Cov) tokens over the whole batch; given the choice, the loss is ours."""
    inputs, mask = draw(one_advantage=False)
    logprobs, old, advantages = inputs["logprobs"], inputs["old_logprobs"], inputs["advantages"]
    chosen = mask & (torch.rand(6, 9) < 0.3)
    ratio = (logprobs - old).exp()
    clip_cov = torch.where(mask & ~chosen, clipped(ratio, advantages), 0.0).sum() / mask.sum()
    config = PPOLossConfig(clip_low=LOW, clip_high=HIGH)
    ours = fgrl.ops.ppo_loss(logprobs, old, advantages.masked_fill(chosen, 0), mask, config=config).loss
    torch.testing.assert_close(ours, clip_cov)

    def kl_cov(logprobs: Tensor) -> Tensor:
        token_losses = -advantages * (logprobs - old).exp() + chosen * (logprobs - old).abs()
        return torch.where(mask, token_losses, 0.0).sum() / mask.sum()

    def recipe(logprobs: Tensor) -> Tensor:
        ref = torch.where(chosen, old, logprobs.detach())
        config = PPOLossConfig(clip_low=1.0, clip_high=1e9, kl_coef=1.0, kl_estimator="abs")
        return fgrl.ops.ppo_loss(logprobs, old, advantages, mask, ref_logprobs=ref, config=config).loss

    for a, b in zip(gradients(recipe, {"logprobs": logprobs}), gradients(kl_cov, {"logprobs": logprobs}), strict=True):
        torch.testing.assert_close(a, b)
