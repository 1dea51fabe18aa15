"""`ppo_loss`: every option of the loss, its gradients and its statistics, against scalar arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import losses
import pytest
import torch
from losses import AGGREGATIONS, ESTIMATORS
from losses import check_ppo as check
from losses import draw_ppo_without_ties as draw
from numerics import MASKS, SHAPES, gradients, make_mask

import fgrl
from fgrl.ops import PPOLossConfig

EVERYTHING = PPOLossConfig(**losses.EVERYTHING | {"kl_estimator": "k3+"}, aggregation="seq-mean-token-mean")


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("config", [PPOLossConfig(), EVERYTHING], ids=["defaults", "everything"])
def test_equals_the_oracle(config: PPOLossConfig, shape: tuple[int, int], kind: str) -> None:
    check(draw(shape), make_mask(kind, shape), config)


@pytest.mark.parametrize("normalizer", [None, 12.5], ids=["local", "global"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kind", ["none", "holes", "masked-row", "all-masked"])
def test_aggregations(kind: str, aggregation: str, normalizer: float | None) -> None:
    shape = (3, 7)
    config = PPOLossConfig(aggregation=aggregation, kl_coef=0.1, entropy_coef=0.1)
    check(draw(shape), make_mask(kind, shape), config, normalizer)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_estimators(estimator: str) -> None:
    check(draw((3, 7)), make_mask("holes", (3, 7)), PPOLossConfig(kl_coef=0.7, kl_estimator=estimator))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
def test_a_plus_keeps_the_value_on_policy_and_takes_the_gradient_of_k2(estimator: str) -> None:
    inputs = draw((3, 7), torch.float32)
    del inputs["old_logprobs"], inputs["rollout_logprobs"], inputs["entropy"]
    inputs["advantages"].zero_()

    def run(kl_estimator: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        config = PPOLossConfig(kl_coef=1.0, kl_estimator=kl_estimator)
        constants = {name: tensor for name, tensor in inputs.items() if name != "logprobs"}
        return gradients(
            lambda logprobs: fgrl.ops.ppo_loss(logprobs, old_logprobs=None, config=config, **constants).loss,
            {"logprobs": inputs["logprobs"]},
        )

    plain, plus, k2 = run(estimator), run(estimator + "+"), run("k2")
    assert torch.equal(plain[0], plus[0])
    torch.testing.assert_close(plus[1]["logprobs"], k2[1]["logprobs"])
    if estimator != "k2":
        assert not torch.allclose(plain[1]["logprobs"], plus[1]["logprobs"])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
def test_a_plus_keeps_the_value_off_policy_too(estimator: str) -> None:
    inputs = draw((3, 7), torch.float32)
    losses = [
        fgrl.ops.ppo_loss(**inputs, config=PPOLossConfig(kl_coef=1.0, kl_estimator=name))
        for name in (estimator, estimator + "+")
    ]
    assert torch.equal(losses[0].stats["kl"], losses[1].stats["kl"])
    assert torch.equal(losses[0].loss, losses[1].loss)


def test_the_gradient_of_a_plus_estimator_is_unbiased() -> None:
    """Summed over a whole vocabulary with the sampling probabilities, it is the gradient of the exact KL."""
    logits = torch.randn(1, 9, dtype=torch.float64)
    ref = torch.randn(1, 9, dtype=torch.float64).log_softmax(-1)
    behaviour = torch.randn(1, 9, dtype=torch.float64).log_softmax(-1)

    def exact(logits: torch.Tensor) -> torch.Tensor:
        logprobs = logits.log_softmax(-1)
        return (logprobs.exp() * (logprobs - ref)).sum()

    def expectation(old: torch.Tensor | None, estimator: str) -> Callable[..., torch.Tensor]:
        def run(logits: torch.Tensor) -> torch.Tensor:
            logprobs = logits.log_softmax(-1)
            sampled_with = logprobs.detach().exp() if old is None else old.exp()
            config = PPOLossConfig(kl_coef=1.0, kl_estimator=estimator, aggregation="token-sum")
            total = logits.new_zeros(())
            for token in range(9):
                one = slice(token, token + 1)
                loss = fgrl.ops.ppo_loss(
                    logprobs[:, one],
                    None if old is None else old[:, one],
                    torch.zeros(1, 1, dtype=torch.float64),
                    ref_logprobs=ref[:, one],
                    config=config,
                ).loss
                total = total + sampled_with[0, token] * loss
            return total

        return run

    right = gradients(exact, {"logits": logits})[1]["logits"]
    for estimator in ("k1+", "k2", "k2+", "k3+", "abs+"):
        ours = gradients(expectation(None, estimator), {"logits": logits})[1]["logits"]
        torch.testing.assert_close(ours, right, msg=lambda m, e=estimator: f"{e} on-policy: {m}")
    for estimator in ("k1+", "k2+", "k3+"):
        ours = gradients(expectation(behaviour, estimator), {"logits": logits})[1]["logits"]
        torch.testing.assert_close(ours, right, msg=lambda m, e=estimator: f"{e} off-policy: {m}")
    for estimator in ("k1", "k3", "abs"):
        biased = gradients(expectation(None, estimator), {"logits": logits})[1]["logits"]
        assert not torch.allclose(biased, right, atol=1e-3), estimator


@pytest.mark.parametrize("importance_cap", [None, 0.5, 2.0], ids=str)
@pytest.mark.parametrize("dual_clip", [None, 1.01, 3.0], ids=str)
@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.0, 0.0), (0.1, 0.5), (1.0, 0.0)], ids=str)
def test_clips_and_caps(clip: tuple[float, float], dual_clip: float | None, importance_cap: float | None) -> None:
    config = PPOLossConfig(clip_low=clip[0], clip_high=clip[1], dual_clip=dual_clip, importance_cap=importance_cap)
    check(draw((4, 25)), make_mask("holes", (4, 25)), config)


@pytest.mark.parametrize("missing", ["entropy", "ref_logprobs", "rollout_logprobs", "old_logprobs"])
def test_optional_inputs(missing: str) -> None:
    inputs = draw((3, 7))
    del inputs[missing]
    check(inputs, make_mask("holes", (3, 7)), PPOLossConfig(dual_clip=2.0, importance_cap=1.5))


def test_on_policy_has_ratio_1_and_the_policy_gradient() -> None:
    logprobs = torch.randn(2, 3, requires_grad=True)
    advantages = torch.randn(2, 3)
    result = fgrl.ops.ppo_loss(logprobs, None, advantages, config=PPOLossConfig(clip_low=0.0, clip_high=0.0))
    result.loss.backward()
    torch.testing.assert_close(result.loss, -advantages.mean())
    torch.testing.assert_close(logprobs.grad, -advantages / 6)
    assert (result.stats["ratio_max"], result.stats["clip_fraction"], result.stats["approx_kl"]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0], ids=str)
@pytest.mark.parametrize("ratio", [0.75, 1.0, 1.25], ids=["lower bound", "one", "upper bound"])
def test_exactly_at_a_bound_nothing_is_clipped_and_the_gradient_is_whole(ratio: float, advantage: float) -> None:
    """A tie of the two branches must not halve the gradient, as a plain `torch.max` of equal values would."""
    logprobs = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    old, advantages = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), advantage, dtype=torch.float64)
    bound = float(logprobs.detach().exp())
    config = PPOLossConfig(clip_low=max(0.0, 1 - bound), clip_high=max(0.0, bound - 1))
    loss, stats = fgrl.ops.ppo_loss(logprobs, old, advantages, config=config)
    loss.backward()
    assert logprobs.grad is not None
    assert float(logprobs.grad) == pytest.approx(-advantage * bound)
    assert stats["clip_fraction"] == 0


def test_the_log_ratio_is_clamped_at_20() -> None:
    logprobs = torch.tensor([[0.0, -100.0]], requires_grad=True)
    old = torch.tensor([[-100.0, 0.0]])
    config = PPOLossConfig(clip_low=1.0, clip_high=1e30)
    loss, stats = fgrl.ops.ppo_loss(logprobs, old, torch.tensor([[-1.0, 1.0]]), config=config)
    loss.backward()
    torch.testing.assert_close(stats["ratio_max"], torch.tensor(20.0).exp())
    assert torch.isfinite(loss)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.0, 0.0]]


def test_the_importance_weight_is_clamped_at_20_nats() -> None:
    logprobs, rollout = torch.zeros(1, 2), torch.tensor([[-100.0, 100.0]])
    advantages = torch.tensor([[-1.0, 0.0]])
    loss = fgrl.ops.ppo_loss(logprobs, logprobs, advantages, rollout_logprobs=rollout).loss
    torch.testing.assert_close(loss, torch.tensor(20.0).exp() / 2)
    loss = fgrl.ops.ppo_loss(logprobs, logprobs, advantages.flip(1), rollout_logprobs=rollout).loss
    torch.testing.assert_close(loss, torch.tensor(-20.0).exp() / 2, rtol=1e-5, atol=0)


def test_advantages_and_the_other_policies_are_constants() -> None:
    """Passing the same tensor as `logprobs` and `old_logprobs` is on-policy, and not a zero gradient."""
    logprobs, advantages, ref = (torch.randn(2, 3, requires_grad=True) for _ in range(3))
    config = PPOLossConfig(kl_coef=0.1, kl_estimator="k2")
    loss = fgrl.ops.ppo_loss(logprobs, logprobs, advantages, ref_logprobs=ref, rollout_logprobs=ref, config=config).loss
    loss.backward()
    assert logprobs.grad is not None
    same = logprobs.detach().requires_grad_()
    fgrl.ops.ppo_loss(
        same, None, advantages.detach(), ref_logprobs=ref.detach(), rollout_logprobs=ref.detach(), config=config
    ).loss.backward()
    torch.testing.assert_close(logprobs.grad, same.grad)
    assert advantages.grad is None
    assert ref.grad is None


def test_a_kl_without_weight_cannot_spoil_the_loss() -> None:
    logprobs = torch.full((1, 2), -100.0, requires_grad=True)
    loss, stats = fgrl.ops.ppo_loss(logprobs, None, torch.ones(1, 2), ref_logprobs=torch.zeros(1, 2))
    loss.backward()
    assert loss == -1
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()
    assert torch.isinf(stats["kl"])


def test_gradients_in_float64() -> None:
    inputs, mask = draw((2, 5)), make_mask("holes", (2, 5))
    constants = {name: tensor for name, tensor in inputs.items() if name not in ("logprobs", "entropy")}
    for aggregation, estimator in itertools.product(AGGREGATIONS, ("k1", "k2", "k3", "abs")):
        config = PPOLossConfig(kl_coef=0.4, kl_estimator=estimator, entropy_coef=0.2, aggregation=aggregation)
        assert torch.autograd.gradcheck(
            lambda logprobs, entropy, config=config: (
                fgrl.ops.ppo_loss(logprobs, entropy=entropy, **constants, mask=mask, config=config).loss
            ),
            [inputs["logprobs"].requires_grad_(), inputs["entropy"].requires_grad_()],
        )
