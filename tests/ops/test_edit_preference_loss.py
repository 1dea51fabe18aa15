"""`edit_preference_loss`: Bradley-Terry over the edited tokens of pairs."""

from __future__ import annotations

import math
from typing import Any

import oracles
import pytest
import torch
from numerics import POISONS, assert_as_accurate, assert_equals_oracle, gradients, make_mask, poisoned

import fgrl

# One token; odd and of unequal width; a side of no width at all.
WIDTHS = {"1 and 1": (1, 1), "7 and 5": (7, 5), "33 and 64": (33, 64), "3 and 0": (3, 0)}


def draw(batch: int, widths: tuple[int, int], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return {
        "chosen_rewards": torch.randn(batch, widths[0], dtype=dtype),
        "rejected_rewards": torch.randn(batch, widths[1], dtype=dtype),
        "chosen_edits": torch.rand(batch, widths[0]) < 0.4,
        "rejected_edits": torch.rand(batch, widths[1]) < 0.4,
    }


def oracle(inputs: dict[str, torch.Tensor], masks: dict[str, torch.Tensor | None], **options: Any) -> Any:
    sides = []
    for side in ("chosen", "rejected"):
        rewards, edits = inputs[f"{side}_rewards"], inputs[f"{side}_edits"].reshape(-1)
        sequences = oracles.sequences_of(rewards.shape, masks.get(f"{side}_mask"))
        sides.append((oracles.flat(rewards), sequences, {i for i, edited in enumerate(edits.tolist()) if edited}))
    return oracles.edit_preference_loss(sides, **options)


@pytest.mark.parametrize("kind", ["none", "tails", "holes", "masked-row", "all-masked"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("unchanged_weight", [0.0, 0.3], ids=str)
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_equals_the_oracle(widths: tuple[int, int], unchanged_weight: float, reduction: str, kind: str) -> None:
    inputs = draw(3, widths)
    masks = {
        f"{side}_mask": make_mask(kind, (3, width)) if width else None
        for side, width in zip(("chosen", "rejected"), widths, strict=True)
    }
    options: dict[str, Any] = {"reduction": reduction, "unchanged_weight": unchanged_weight, "margin": 0.5}
    loss, margins = fgrl.ops.edit_preference_loss(**inputs, **masks, **options)
    expected, expected_margins = oracle(inputs, masks, **options)
    assert_equals_oracle(loss, expected, "loss")
    assert_equals_oracle(margins, expected_margins, "margins")
    assert not margins.requires_grad


def test_gradients_equal_central_differences_of_the_oracle() -> None:
    inputs = draw(2, (4, 3))
    options: dict[str, Any] = {"reduction": "mean", "unchanged_weight": 0.3, "margin": 0.2}
    names = ("chosen_rewards", "rejected_rewards")
    edits = {name: inputs[name] for name in inputs if name not in names}
    grads = gradients(
        lambda **leaves: fgrl.ops.edit_preference_loss(**leaves, **edits, **options).loss,
        {name: inputs[name] for name in names},
    )[1]
    for name in names:

        def loss(point: Any, name: str = name) -> float:
            return oracle(inputs | {name: torch.as_tensor(point).reshape(inputs[name].shape)}, {}, **options)[0]

        expected = oracles.central_difference(loss, oracles.flat(inputs[name]))
        torch.testing.assert_close(grads[name].reshape(-1), torch.as_tensor(expected), rtol=1e-6, atol=1e-8)


def test_no_edits_is_a_tie() -> None:
    rewards, edits = torch.randn(1, 3), torch.zeros(1, 3)
    for reduction in ("sum", "mean"):
        loss, margins = fgrl.ops.edit_preference_loss(rewards, rewards, edits, edits, reduction=reduction)
        assert float(loss) == pytest.approx(math.log(2))
        assert margins.tolist() == [0.0]


@pytest.mark.parametrize("gap", [-1e4, 1e4], ids=str)
def test_far_apart_scores_stay_finite(gap: float) -> None:
    chosen = torch.tensor([[gap]], requires_grad=True)
    loss = fgrl.ops.edit_preference_loss(chosen, torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1)).loss
    loss.backward()
    assert loss.item() == pytest.approx(max(-gap, 0.0))
    assert chosen.grad is not None
    assert float(chosen.grad) == (-1.0 if gap < 0 else 0.0)


def test_margins_carry_no_gradient() -> None:
    rewards, edits = torch.randn(2, 3, requires_grad=True), torch.ones(2, 3)
    loss, margins = fgrl.ops.edit_preference_loss(rewards, -rewards, edits, edits)
    assert loss.requires_grad
    assert not margins.requires_grad


def test_edits_outside_the_mask_do_not_count() -> None:
    rewards, edits = torch.tensor([[1.0, 5.0]]), torch.ones(1, 2)
    margins = fgrl.ops.edit_preference_loss(
        rewards, torch.zeros(1, 2), edits, edits, chosen_mask=torch.tensor([[1, 0]])
    ).margins
    assert margins.tolist() == [1.0]


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_nothing_under_the_mask_is_seen_or_differentiated(poison: float) -> None:
    inputs = draw(3, (7, 5), torch.float32)
    masks = {"chosen_mask": make_mask("holes", (3, 7)), "rejected_mask": make_mask("masked-row", (3, 5))}
    names = ("chosen_rewards", "rejected_rewards")

    def run(rewards: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        edits = {name: inputs[name] for name in inputs if name not in names}
        return gradients(
            lambda **leaves: fgrl.ops.edit_preference_loss(**leaves, **edits, **masks, unchanged_weight=0.1).loss,
            rewards,
        )

    clean = run({name: inputs[name] for name in names})
    dirty = run({name: poisoned(inputs[name], masks[name.replace("rewards", "mask")], poison) for name in names})
    assert torch.equal(clean[0], dirty[0])
    for name in names:
        assert torch.equal(clean[1][name], dirty[1][name]), name
        assert (dirty[1][name][~masks[name.replace("rewards", "mask")]] == 0).all()


def test_kept_tokens_matter_only_to_the_penalty() -> None:
    inputs = draw(3, (7, 5), torch.float32)
    dirty = inputs | {
        f"{side}_rewards": poisoned(inputs[f"{side}_rewards"], inputs[f"{side}_edits"], float("nan"))
        for side in ("chosen", "rejected")
    }
    clean_loss = fgrl.ops.edit_preference_loss(**inputs).loss
    assert torch.equal(fgrl.ops.edit_preference_loss(**dirty).loss, clean_loss)
    assert torch.isnan(fgrl.ops.edit_preference_loss(**dirty, unchanged_weight=0.1).loss)


def test_an_empty_batch_has_loss_0_and_a_gradient() -> None:
    rewards = torch.zeros(0, 3, requires_grad=True)
    loss, margins = fgrl.ops.edit_preference_loss(rewards, rewards, torch.zeros(0, 3), torch.zeros(0, 3))
    loss.backward()
    assert loss == 0
    assert margins.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16], ids=str)
def test_edits_and_masks_of_every_dtype(dtype: torch.dtype) -> None:
    inputs, mask = draw(3, (7, 7)), make_mask("holes", (3, 7))
    assert mask is not None
    expected = fgrl.ops.edit_preference_loss(**inputs, chosen_mask=mask, rejected_mask=mask)
    cast = {name: tensor.to(dtype) if "edits" in name else tensor for name, tensor in inputs.items()}
    result = fgrl.ops.edit_preference_loss(**cast, chosen_mask=mask.to(dtype), rejected_mask=mask.to(dtype))
    assert torch.equal(result.loss, expected.loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs(dtype: torch.dtype) -> None:
    inputs = draw(4, (257, 255))
    inputs |= {name: inputs[name].to(dtype) for name in ("chosen_rewards", "rejected_rewards")}
    exact_inputs = inputs | {name: inputs[name].double() for name in ("chosen_rewards", "rejected_rewards")}
    ours = fgrl.ops.edit_preference_loss(**inputs)
    exact = fgrl.reference.edit_preference_loss(**exact_inputs)
    eager = (inputs["chosen_rewards"] * inputs["chosen_edits"]).sum(1) - (
        inputs["rejected_rewards"] * inputs["rejected_edits"]
    ).sum(1)
    assert ours.loss.dtype == ours.margins.dtype == torch.float32
    assert_as_accurate(ours.margins, eager, exact.margins, eps=2e-5)
    torch.testing.assert_close(ours.loss.double(), exact.loss, rtol=1e-5, atol=1e-5)


def test_gradients_in_float64() -> None:
    inputs = draw(2, (4, 3))
    assert torch.autograd.gradcheck(
        lambda c, r: (
            fgrl.ops.edit_preference_loss(
                c, r, inputs["chosen_edits"], inputs["rejected_edits"], unchanged_weight=0.5, margin=0.1
            ).loss
        ),
        [inputs["chosen_rewards"].requires_grad_(), inputs["rejected_rewards"].requires_grad_()],
    )
