"""`value_loss`: the clipped squared error, its gradient, aggregation and statistics."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from losses import AGGREGATIONS
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


def draw(shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    values = torch.randn(shape, dtype=dtype)
    return {
        "values": values,
        "old_values": values + 0.4 * torch.randn(shape, dtype=dtype),
        "returns": values + torch.randn(shape, dtype=dtype),
    }


@pytest.mark.parametrize("normalizer", [None, 12.5], ids=["local", "global"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_the_oracle(shape: tuple[int, int], kind: str, aggregation: str, normalizer: float | None) -> None:
    inputs, mask = draw(shape), make_mask(kind, shape)
    values = inputs["values"].requires_grad_()
    loss, stats = fgrl.ops.value_loss(**inputs, mask=mask, clip=0.2, normalizer=normalizer, aggregation=aggregation)
    loss.backward()
    sequences = oracles.sequences_of(shape, mask)
    flats = [oracles.flat(inputs[name]) for name in ("values", "old_values", "returns")]
    expected, grad, clipped = oracles.value_loss(
        *flats, sequences, clip=0.2, normalizer=normalizer, aggregation=aggregation
    )
    assert_equals_oracle(loss, expected, "loss")
    assert_equals_oracle(values.grad, grad, "gradient")
    assert_equals_oracle(stats["clip_fraction"], clipped, "clip_fraction")
    assert_equals_oracle(stats["value_loss"], expected, "value_loss")
    assert_equals_oracle(stats["tokens"], sum(map(len, sequences)), "tokens")
    for name, terms in {
        "value_mean": flats[0],
        "return_mean": flats[2],
        "mean_squared_error": (flats[0] - flats[2]) ** 2,
    }.items():
        assert_equals_oracle(stats[name], oracles.aggregate(terms, sequences, "token-mean", None), name)
    assert all(value.shape == () and not value.requires_grad for value in stats.values())


def test_without_clip_it_is_the_squared_error() -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    plain = fgrl.ops.value_loss(inputs["values"], None, inputs["returns"], mask, clip=None)
    expected = (inputs["values"] - inputs["returns"])[mask].square().mean() / 2
    torch.testing.assert_close(plain.loss, expected)
    assert plain.stats["clip_fraction"] == 0


def test_the_default_clip_is_two_tenths() -> None:
    loss = fgrl.ops.value_loss(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])).loss
    assert float(loss) == pytest.approx((0.2 - 1.0) ** 2 / 2)


@pytest.mark.parametrize("side", [-1.0, 1.0], ids=["lower", "upper"])
def test_exactly_at_the_clip_the_gradient_is_whole(side: float) -> None:
    value = torch.tensor([[0.25 * side]], requires_grad=True)
    loss, stats = fgrl.ops.value_loss(value, torch.zeros(1, 1), torch.tensor([[2.0]]), clip=0.25)
    loss.backward()
    assert value.grad is not None
    assert float(value.grad) == 0.25 * side - 2.0
    assert stats["clip_fraction"] == 0


def test_a_token_far_from_its_old_value_has_no_gradient() -> None:
    value = torch.tensor([[1.0]], requires_grad=True)
    fgrl.ops.value_loss(value, torch.tensor([[0.0]]), torch.tensor([[1.5]]), clip=0.25).loss.backward()
    assert value.grad is not None
    assert float(value.grad) == 0


def test_returns_and_old_values_are_constants() -> None:
    values, old, returns = (torch.randn(2, 3, requires_grad=True) for _ in range(3))
    fgrl.ops.value_loss(values, old, returns).loss.backward()
    assert values.grad is not None
    assert old.grad is None
    assert returns.grad is None


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("kind", ["holes", "masked-row", "all-masked"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_under_the_mask_is_seen_or_differentiated(aggregation: str, kind: str, poison: float) -> None:
    inputs, mask = draw((3, 7), torch.float32), make_mask(kind, (3, 7))

    def run(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        values = tensors["values"].clone().requires_grad_()
        loss, stats = fgrl.ops.value_loss(
            values, tensors["old_values"], tensors["returns"], mask, aggregation=aggregation
        )
        loss.backward()
        assert values.grad is not None
        return loss.detach(), values.grad, stats

    clean = run(inputs)
    dirty = run({name: poisoned(tensor, mask, poison) for name, tensor in inputs.items()})
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])
    assert clean[2] == dirty[2]
    assert (dirty[1][~mask] == 0).all()
    if kind == "all-masked":
        assert dirty[0] == 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("lengths", [(7, 1, 4), (0, 5, 0), (0, 0, 0)], ids=str)
def test_packed_equals_padded(lengths: tuple[int, ...], aggregation: str) -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    assert mask is not None
    mask = mask & (torch.arange(7) < torch.tensor(lengths)[:, None])

    def run(tensors: dict[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return gradients(
            lambda **leaves: fgrl.ops.value_loss(**leaves, aggregation=aggregation, **options).loss, tensors
        )

    padded = run(inputs, mask=mask)
    packed = run(
        {name: pack(tensor, lengths) for name, tensor in inputs.items()},
        mask=pack(mask, lengths),
        cu_seqlens=offsets(lengths),
    )
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(unpack(packed[1]["values"], lengths, 7), padded[1]["values"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_with_a_global_normalizer_add_up_to_one_big_batch(aggregation: str) -> None:
    inputs, mask = draw((6, 7)), make_mask("holes", (6, 7))
    assert mask is not None
    count = {"token-mean": int(mask.sum()), "token-sum": None}.get(aggregation, 6)
    options: dict[str, Any] = {"aggregation": aggregation}
    whole = gradients(lambda **leaves: fgrl.ops.value_loss(**leaves, mask=mask, **options).loss, inputs)

    def micro_batches(**leaves: torch.Tensor) -> torch.Tensor:
        losses = [
            fgrl.ops.value_loss(
                **{name: tensor[rows] for name, tensor in leaves.items()}, mask=mask[rows], normalizer=count, **options
            ).loss
            for rows in (slice(0, 1), slice(1, 6))
        ]
        return torch.stack(losses).sum()

    parts = gradients(micro_batches, inputs)
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[1]["values"], whole[1]["values"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs(dtype: torch.dtype) -> None:
    inputs = {name: tensor.to(dtype) for name, tensor in draw((4, 129)).items()}
    constants = {name: inputs[name] for name in ("old_values", "returns")}

    def eager(values: torch.Tensor) -> torch.Tensor:
        old, returns = constants["old_values"], constants["returns"]
        clipped = torch.clamp(values, old - 0.2, old + 0.2)
        return torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).mean() / 2

    def run(values: torch.Tensor, dtype: torch.dtype = dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        fixed = {name: tensor.to(dtype) for name, tensor in constants.items()}
        return gradients(lambda values: fgrl.ops.value_loss(values, **fixed).loss, {"values": values.to(dtype)})

    ours, exact = run(inputs["values"]), run(inputs["values"], torch.float64)
    baseline = gradients(eager, {"values": inputs["values"]})
    assert ours[0].dtype == torch.float32
    assert ours[1]["values"].dtype == dtype
    assert_as_accurate(ours[0], baseline[0], exact[0], message="loss")
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-6)
    # Rounded once to the input's dtype, no more.
    torch.testing.assert_close(ours[1]["values"], exact[1]["values"].to(dtype), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("layout", ["B=0", "T=0", "N=0"])
def test_empty_batches_have_loss_0_and_a_gradient(layout: str, aggregation: str) -> None:
    values = torch.zeros({"B=0": (0, 3), "T=0": (2, 0), "N=0": (0,)}[layout], requires_grad=True)
    cu_seqlens = torch.zeros(3, dtype=torch.int32) if layout == "N=0" else None
    constant = values.detach()
    loss = fgrl.ops.value_loss(values, constant, constant, cu_seqlens=cu_seqlens, aggregation=aggregation).loss
    loss.backward()
    assert loss == 0
    assert values.grad is not None


def test_gradients_in_float64() -> None:
    inputs, mask = draw((2, 5)), make_mask("holes", (2, 5))
    for aggregation in AGGREGATIONS:
        assert torch.autograd.gradcheck(
            lambda values, aggregation=aggregation: (
                fgrl.ops.value_loss(values, inputs["old_values"], inputs["returns"], mask, aggregation=aggregation).loss
            ),
            [inputs["values"].requires_grad_()],
        )
