"""`ppo_loss` of any batch: masks, packed and empty ones, global normalizers, low precision, the same bits twice."""

from __future__ import annotations

from typing import Any

import losses
import pytest
import torch
from losses import AGGREGATIONS
from losses import draw_ppo_without_ties as draw
from numerics import POISONS, assert_as_accurate, gradients, make_mask, offsets, pack, poisoned, unpack

import fgrl
from fgrl.ops import PPOLossConfig

EVERYTHING = PPOLossConfig(**losses.EVERYTHING | {"kl_estimator": "k3+"}, aggregation="seq-mean-token-mean")


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

        grads = gradients(loss, {name: tensors[name] for name in ("logprobs", "entropy")})[1]
        return results[0], grads

    clean, clean_grads = run(inputs)
    dirty, dirty_grads = run({name: poisoned(tensor, mask, poison) for name, tensor in inputs.items()})
    assert torch.equal(clean.loss, dirty.loss)
    assert clean.stats == dirty.stats
    for name, grad in dirty_grads.items():
        assert torch.equal(grad, clean_grads[name]), name
        assert (grad[~mask] == 0).all(), name
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
        value, grads = gradients(
            lambda logprobs: fgrl.ops.ppo_loss(logprobs, **constants, mask=mask, config=config).loss,
            {"logprobs": tensors["logprobs"]},
        )
        return value, grads["logprobs"]

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
