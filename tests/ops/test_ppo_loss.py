"""`ppo_loss`: every option of the loss, its gradients and its statistics."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from numerics import (
    MASKS,
    POISONS,
    SHAPES,
    assert_as_accurate,
    assert_equals_oracle,
    gradients,
    make_mask,
    offsets,
    pack,
    poisoned,
    unpack,
)

import fgrl
from fgrl.ops import PPOLossConfig

AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean")
ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k2+", "k3+", "abs+")
STATS = {
    "policy_loss",
    "kl",
    "entropy",
    "clip_fraction",
    "clip_fraction_lower",
    "approx_kl",
    "ratio_mean",
    "ratio_max",
    "tokens",
}
EVERYTHING = PPOLossConfig(
    clip_low=0.1,
    clip_high=0.3,
    dual_clip=1.5,
    kl_coef=0.3,
    kl_estimator="k3+",
    entropy_coef=0.05,
    importance_cap=1.2,
    aggregation="seq-mean-token-mean",
)


def draw(shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Log-probabilities apart enough that every branch of the clipping is taken."""
    logprobs = -torch.rand(shape, dtype=dtype) * 3
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + torch.randn(shape, dtype=dtype) * 0.5,
        "advantages": torch.randn(shape, dtype=dtype),
        "ref_logprobs": logprobs + torch.randn(shape, dtype=dtype) * 0.5,
        "entropy": torch.rand(shape, dtype=dtype) * 2,
        "rollout_logprobs": logprobs + torch.randn(shape, dtype=dtype) * 0.5,
    }


def oracle(
    inputs: dict[str, torch.Tensor],
    mask: torch.Tensor | None,
    config: PPOLossConfig,
    normalizer: float | None = None,
    sequences: Any = None,
) -> dict[str, Any]:
    return oracles.ppo_loss(
        *(oracles.flat(inputs.get(name)) for name in ("logprobs", "old_logprobs", "advantages")),
        sequences or oracles.sequences_of(inputs["logprobs"].shape, mask),
        *(oracles.flat(inputs.get(name)) for name in ("ref_logprobs", "entropy", "rollout_logprobs")),
        normalizer=normalizer,
        **vars(config),
    )


def check(
    inputs: dict[str, torch.Tensor], mask: torch.Tensor | None, config: PPOLossConfig, normalizer: float | None = None
) -> None:
    """Loss, both gradients and all statistics against the oracle."""
    inputs = {name: tensor.clone() for name, tensor in inputs.items()}
    logprobs = inputs["logprobs"].requires_grad_()
    entropy = inputs["entropy"].requires_grad_() if "entropy" in inputs else None
    result = fgrl.ops.ppo_loss(**({"old_logprobs": None} | inputs), mask=mask, normalizer=normalizer, config=config)
    result.loss.backward()
    expected = oracle(inputs, mask, config, normalizer)
    assert_equals_oracle(result.loss, expected["loss"], "loss")
    assert_equals_oracle(logprobs.grad, expected["logprobs_gradient"], "gradient by logprobs")
    if entropy is not None and entropy.grad is not None:
        assert_equals_oracle(entropy.grad, expected["entropy_gradient"], "gradient by entropy")
    assert set(result.stats) == STATS
    for name, value in result.stats.items():
        assert_equals_oracle(value, expected["stats"][name], name)
        assert value.shape == ()
        assert not value.requires_grad


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


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("kind", ["holes", "masked-row", "all-masked"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_under_the_mask_is_seen_or_differentiated(aggregation: str, kind: str, poison: float) -> None:
    inputs, mask = draw((3, 7), torch.float32), make_mask(kind, (3, 7))
    config = PPOLossConfig(
        dual_clip=2.0, kl_coef=0.1, kl_estimator="k3", entropy_coef=0.1, importance_cap=2.0, aggregation=aggregation
    )

    def run(tensors: dict[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
        constants = {name: tensor for name, tensor in tensors.items() if name not in ("logprobs", "entropy")}
        results = []

        def loss(**leaves: torch.Tensor) -> torch.Tensor:
            results.append(fgrl.ops.ppo_loss(**leaves, **constants, mask=mask, config=config))
            return results[0].loss

        slopes = gradients(loss, {name: tensors[name] for name in ("logprobs", "entropy")})[1]
        return results[0], slopes

    clean, clean_slopes = run(inputs)
    dirty, dirty_slopes = run({name: poisoned(tensor, mask, poison) for name, tensor in inputs.items()})
    assert torch.equal(clean.loss, dirty.loss)
    assert clean.stats == dirty.stats
    for name, slope in dirty_slopes.items():
        assert torch.equal(slope, clean_slopes[name]), name
        assert (slope[~mask] == 0).all(), name
    if kind == "all-masked":
        assert dirty.loss == 0
        assert all(value == 0 for value in dirty.stats.values())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("lengths", [(7, 1, 4), (0, 5, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_packed_equals_padded(dtype: torch.dtype, lengths: tuple[int, ...], aggregation: str) -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    assert mask is not None
    mask = mask & (torch.arange(7) < torch.tensor(lengths)[:, None])
    config = PPOLossConfig(kl_coef=0.1, entropy_coef=0.1, aggregation=aggregation)

    def run(tensors: dict[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return gradients(lambda **leaves: fgrl.ops.ppo_loss(**leaves, config=config, **options).loss, tensors)

    padded = run(inputs, mask=mask)
    packed = run(
        {name: pack(tensor, lengths) for name, tensor in inputs.items()},
        mask=pack(mask, lengths),
        cu_seqlens=offsets(lengths, dtype),
    )
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-12, atol=1e-12)
    for name in ("logprobs", "entropy"):
        torch.testing.assert_close(unpack(packed[1][name], lengths, 7), padded[1][name], rtol=1e-12, atol=1e-12)


def test_packed_without_sequences_needs_no_cu_seqlens_for_token_aggregations() -> None:
    inputs = draw((3, 7))
    padded = fgrl.ops.ppo_loss(**inputs).loss
    packed = fgrl.ops.ppo_loss(**{name: tensor.reshape(-1) for name, tensor in inputs.items()}).loss
    torch.testing.assert_close(packed, padded)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_with_a_global_normalizer_add_up_to_one_big_batch(aggregation: str, as_tensor: bool) -> None:
    shape = (6, 7)
    inputs, mask = draw(shape), make_mask("holes", shape)
    assert mask is not None
    mask[4] = False
    config = PPOLossConfig(kl_coef=0.1, entropy_coef=0.1, aggregation=aggregation)
    whole = gradients(lambda **leaves: fgrl.ops.ppo_loss(**leaves, mask=mask, config=config).loss, inputs)
    count: Any = {"token-mean": int(mask.sum()), "token-sum": None}.get(aggregation, int(mask.any(1).sum()))
    if as_tensor and count is not None:
        count = torch.tensor(count)

    def micro_batches(**leaves: torch.Tensor) -> torch.Tensor:
        losses = [
            fgrl.ops.ppo_loss(
                **{name: tensor[rows] for name, tensor in leaves.items()},
                mask=mask[rows],
                normalizer=count,
                config=config,
            ).loss
            for rows in (slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 6))  # unequal, one of them fully masked
        ]
        return torch.stack(losses).sum()

    parts = gradients(micro_batches, inputs)
    torch.testing.assert_close(parts[0], whole[0])
    for name in ("logprobs", "entropy"):
        torch.testing.assert_close(parts[1][name], whole[1][name], msg=name)


@pytest.mark.parametrize(
    "normalizer",
    [torch.tensor(4), torch.tensor(4.0), torch.tensor(4.0, dtype=torch.float64), torch.tensor([4.0])],
    ids=["int64", "fp32", "fp64 as in moments", "one element"],
)
def test_a_normalizer_tensor_changes_neither_dtype_nor_shape(normalizer: torch.Tensor) -> None:
    logprobs = torch.zeros(1, 4, requires_grad=True)
    loss, stats = fgrl.ops.ppo_loss(logprobs, None, torch.ones(1, 4), normalizer=normalizer)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    assert (stats["policy_loss"].dtype, stats["policy_loss"].shape) == (torch.float32, ())
    assert loss == -1.0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_normalizer_of_0_from_a_fully_masked_global_batch_gives_loss_0(aggregation: str) -> None:
    logprobs = torch.full((2, 3), float("nan"), requires_grad=True)
    mask = torch.zeros(2, 3)
    config = PPOLossConfig(aggregation=aggregation)
    loss = fgrl.ops.ppo_loss(logprobs, None, torch.ones(2, 3), mask, normalizer=mask.sum(), config=config).loss
    loss.backward()
    assert loss == 0
    assert logprobs.grad is not None
    assert (logprobs.grad == 0).all()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("layout", ["B=0", "T=0", "N=0"])
def test_empty_batches_have_loss_0_and_a_gradient(layout: str, aggregation: str) -> None:
    logprobs = torch.zeros({"B=0": (0, 3), "T=0": (2, 0), "N=0": (0,)}[layout], requires_grad=True)
    cu_seqlens = torch.zeros(3, dtype=torch.int32) if layout == "N=0" else None
    config = PPOLossConfig(aggregation=aggregation)
    loss, stats = fgrl.ops.ppo_loss(
        logprobs, logprobs.detach(), logprobs.detach(), cu_seqlens=cu_seqlens, config=config
    )
    loss.backward()
    assert loss == 0
    assert all(value == 0 for value in stats.values())
    assert logprobs.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs(dtype: torch.dtype) -> None:
    """Against plain PyTorch in that dtype, both measured against float64 of the same, rounded, inputs."""
    shape = (4, 129)
    inputs = {name: tensor.to(dtype) for name, tensor in draw(shape).items()}
    mask = make_mask("holes", shape)
    assert mask is not None
    config = PPOLossConfig(kl_coef=0.1, kl_estimator="k2", dual_clip=2.0)

    def run(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        constants = {name: tensor for name, tensor in tensors.items() if name not in ("logprobs", "entropy")}
        value, slopes = gradients(
            lambda logprobs: fgrl.ops.ppo_loss(logprobs, **constants, mask=mask, config=config).loss,
            {"logprobs": tensors["logprobs"]},
        )
        return value, slopes["logprobs"]

    def eager(logprobs: torch.Tensor) -> torch.Tensor:
        ratio = (logprobs - inputs["old_logprobs"]).exp()
        advantages = inputs["advantages"]
        loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * 2.0), loss)
        loss = loss * (inputs["old_logprobs"] - inputs["rollout_logprobs"]).exp()
        loss = loss + 0.1 * (logprobs - inputs["ref_logprobs"]).square() / 2
        return (loss * mask).sum() / mask.sum()

    ours, exact = run(inputs), run({name: tensor.double() for name, tensor in inputs.items()})
    baseline = gradients(eager, {"logprobs": inputs["logprobs"]})
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == dtype
    assert_as_accurate(ours[0], baseline[0], exact[0], message="loss")
    assert_as_accurate(ours[1], baseline[1]["logprobs"], exact[1], eps=2e-5, message="gradient")
    # The loss has no low-precision arithmetic at all.
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-6)


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


def test_a_kl_without_weight_cannot_spoil_the_loss() -> None:
    logprobs = torch.full((1, 2), -100.0, requires_grad=True)
    loss, stats = fgrl.ops.ppo_loss(logprobs, None, torch.ones(1, 2), ref_logprobs=torch.zeros(1, 2))
    loss.backward()
    assert loss == -1
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()
    assert torch.isinf(stats["kl"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16], ids=str)
def test_masks_of_every_dtype(dtype: torch.dtype) -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    assert mask is not None
    expected = fgrl.ops.ppo_loss(**inputs, mask=mask)
    result = fgrl.ops.ppo_loss(**inputs, mask=mask.to(dtype))
    assert torch.equal(result.loss, expected.loss)
    assert result.stats == expected.stats


def test_same_bits_twice() -> None:
    inputs, mask = draw((5, 33), torch.float32), make_mask("holes", (5, 33))
    runs = [
        gradients(lambda **leaves: fgrl.ops.ppo_loss(**leaves, mask=mask, config=EVERYTHING).loss, inputs)
        for _ in range(2)
    ]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1]["logprobs"], runs[1][1]["logprobs"])


def test_inputs_are_not_written() -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    copies = {name: tensor.clone() for name, tensor in inputs.items()}
    fgrl.ops.ppo_loss(**inputs, mask=mask, config=EVERYTHING)
    assert all(torch.equal(inputs[name], copy) for name, copy in copies.items())
