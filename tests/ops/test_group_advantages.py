"""`group_advantages`: baselines and scales within groups, returns-to-go, segments and their min-form."""

from __future__ import annotations

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
)
from torch import Tensor

import fgrl
from fgrl.extension import interprets_kernels

pytestmark = pytest.mark.usefixtures("each_backend")

NAN = float("nan")
BASELINES, SCALES = ("mean", "leave-one-out", "none"), ("group", "batch", "none")


def draw(shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Groups of uneven sizes (one of 1 in most), with ids in no order; segments of random lengths."""
    batch = shape[0]
    return {
        "rewards": torch.randn(batch, dtype=dtype),
        "groups": torch.tensor([7, -3, 2**40])[torch.randint(3, (batch,))],
        "token_rewards": torch.randn(shape, dtype=dtype),
        "segment_ids": (torch.rand(shape) < 0.4).cumsum(1),
    }


def oracle(inputs: dict[str, Any], mask: Tensor | None, shape: tuple[int, int], **options: Any) -> Any:
    flat = {name: oracles.flat(inputs.get(name)) for name in ("rewards", "token_rewards")}
    ids = inputs.get("segment_ids")
    return oracles.group_advantages(
        flat["rewards"],
        inputs["groups"].tolist(),
        flat["token_rewards"],
        oracles.sequences_of(shape, mask),
        shape[0] * shape[1],
        segment_ids=None if ids is None else ids.reshape(-1).tolist(),
        **options,
    )


def without(inputs: dict[str, Tensor], *names: str) -> dict[str, Any]:
    return {name: None if name in names else tensor for name, tensor in inputs.items()}


@pytest.mark.skipif(interprets_kernels(), reason="many small calls; tests/kernels compares the kernels")
@pytest.mark.parametrize("given", ["outcome", "tokens", "segments", "all", "min-form"])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", [*SHAPES.values(), (9, 12)], ids=[*SHAPES, "9x12"])
def test_equals_the_oracle(shape: tuple[int, int], kind: str, given: str) -> None:
    dropped = {
        "outcome": ("token_rewards", "segment_ids"),
        "tokens": ("rewards", "segment_ids"),
        "segments": ("rewards",),
    }
    inputs, mask = without(draw(shape), *dropped.get(given, ())), make_mask(kind, shape)
    if given == "outcome" and mask is None:
        mask = torch.ones(shape)
    options: dict[str, Any] = {"gamma": 0.9} | ({"min_temperature": 0.3} if given == "min-form" else {})
    for baseline in BASELINES:
        for scale in SCALES:
            ours = fgrl.ops.group_advantages(**inputs, mask=mask, baseline=baseline, scale=scale, **options)
            expected = oracle(inputs, mask, shape, baseline=baseline, scale=scale, **options)
            assert_equals_oracle(ours, expected, f"{baseline}, {scale}")


@pytest.mark.parametrize("has_segments", [True, False], ids=["segments", "tokens"])
@pytest.mark.parametrize("temperature", [0, 0.01, 0.1, 10.0], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0], ids=str)
def test_min_form_at_every_temperature(gamma: float, temperature: float, has_segments: bool) -> None:
    inputs, mask = draw((5, 11)), make_mask("holes", (5, 11))
    inputs = inputs if has_segments else without(inputs, "segment_ids")
    options = {"gamma": gamma, "min_temperature": temperature, "baseline": "leave-one-out", "scale": "none"}
    ours = fgrl.ops.group_advantages(**inputs, mask=mask, **options)
    assert_equals_oracle(ours, oracle(inputs, mask, (5, 11), **options))


def test_min_form_at_0_is_the_minimum_up_to_its_step_and_0_behind_it() -> None:
    """PURE's definition of a step's return. Of equal scores the first is the minimum."""
    scores = torch.tensor([[0.9, 0.8, -0.6, 0.7, -0.6]])
    ours = fgrl.ops.group_advantages(
        None, torch.zeros(1).long(), token_rewards=scores, min_temperature=0, baseline="none", scale="none"
    )
    torch.testing.assert_close(ours, torch.tensor([[-0.6, -0.6, -0.6, 0.0, 0.0]]))


def test_groups_by_hand() -> None:
    """Two groups laced into each other, of two and of three, and a group of one."""
    rewards, groups = torch.tensor([1.0, 10.0, 3.0, 20.0, 30.0, 5.0]), torch.tensor([4, 9, 4, 9, 9, 1])
    mask = torch.ones(6, 1)

    def run(**options: Any) -> list[float]:
        return fgrl.ops.group_advantages(rewards.double(), groups, mask, **options)[:, 0].tolist()

    assert run(scale="none") == [-1, -10, 1, 0, 10, 0]
    assert run(scale="none", baseline="leave-one-out") == [-2, -15, 2, 0, 15, 0]
    root = 2**0.5
    assert run() == pytest.approx([-1 / (root + 1e-6), -10 / (10 + 1e-6), 1 / (root + 1e-6), 0, 10 / (10 + 1e-6), 0])
    assert run(baseline="none")[5] == 5
    whole = rewards.double().std().item() + 1e-6
    assert run(scale="batch") == pytest.approx([x / whole for x in (-1, -10, 1, 0, 10, 0)])


def test_rewards_that_are_all_equal_have_advantage_0() -> None:
    """A group that is solved, or failed, by all: 0 over 1e-6, without rounding errors blown up by the division."""
    rewards, groups = torch.full((7,), 0.1), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    for baseline in ("mean", "leave-one-out"):
        ours = fgrl.ops.group_advantages(rewards, groups, torch.ones(7, 3), baseline=baseline)
        assert (ours == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_ids_of_every_integer_type(dtype: torch.dtype) -> None:
    inputs, mask = draw((6, 5)), make_mask("holes", (6, 5))
    inputs["groups"] = torch.tensor([3, 100, 3, 3, 100, 0])
    expected = fgrl.ops.group_advantages(**inputs, mask=mask)
    for name in ("groups", "segment_ids"):
        ours = fgrl.ops.group_advantages(**inputs | {name: inputs[name].to(dtype)}, mask=mask)
        assert torch.equal(ours, expected)


def test_ids_may_be_any_numbers() -> None:
    """Hashes of prompts: negative, and so large that as fp64 two of them are one."""
    rewards, mask = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.ones(4, 1)
    groups = torch.tensor([2**62, 2**62 + 1, 2**62, -(2**63)])
    ours = fgrl.ops.group_advantages(rewards, groups, mask, scale="none")
    assert ours[:, 0].tolist() == [-1.5, 0, 1.5, 0]


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]], ids=["as drawn", "shuffled"])
def test_the_order_of_sequences_does_not_matter(rows: list[int]) -> None:
    inputs, mask = draw((5, 6)), make_mask("holes", (5, 6))
    assert mask is not None
    expected = fgrl.ops.group_advantages(**inputs, mask=mask)
    moved = fgrl.ops.group_advantages(**{name: tensor[rows] for name, tensor in inputs.items()}, mask=mask[rows])
    torch.testing.assert_close(moved, expected[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_segments", [True, False], ids=["segments", "tokens"])
def test_a_hole_is_as_if_it_were_cut_out(has_segments: bool) -> None:
    """A tool's output inside a segment does not split it, and neither decays nor ends the returns."""
    rewards = torch.tensor([[1.0, 99.0, 2.0, 3.0, 99.0, 4.0]], dtype=torch.float64)
    ids = torch.tensor([[5, 8, 5, 6, 6, 6]]) if has_segments else None
    mask = torch.tensor([[1, 0, 1, 1, 0, 1]])
    kept = mask[0].bool()
    options = {"baseline": "none", "scale": "none", "gamma": 0.5}
    group = torch.zeros(1).long()
    ours = fgrl.ops.group_advantages(None, group, mask, token_rewards=rewards, segment_ids=ids, **options)
    cut = fgrl.ops.group_advantages(
        None, group, token_rewards=rewards[:, kept], segment_ids=None if ids is None else ids[:, kept], **options
    )
    assert torch.equal(ours[:, kept], cut)
    assert (ours[:, ~kept] == 0).all()
    assert cut.tolist() == ([[4, 4, 4, 4]] if has_segments else [[3.25, 4.5, 5, 4]])


def test_a_segments_score_is_read_at_its_end_or_from_all_its_tokens() -> None:
    inputs, mask = draw((4, 9)), make_mask("holes", (4, 9))
    assert mask is not None
    ids, scores = inputs["segment_ids"], torch.randn(4, 10, dtype=torch.float64)
    everywhere = scores.gather(1, ids)
    ends = torch.zeros(4, 9, dtype=torch.bool)
    for row in range(4):
        for segment in ids[row].unique():
            tokens = (mask[row] & (ids[row] == segment)).nonzero()
            if len(tokens):
                ends[row, tokens[-1]] = True
    alone = torch.where(ends, everywhere, 0.0)
    for gamma in (0.0, 0.7, 1.0):
        both = [
            fgrl.ops.group_advantages(None, inputs["groups"], mask, token_rewards=rewards, segment_ids=ids, gamma=gamma)
            for rewards in (everywhere, alone)
        ]
        assert torch.equal(*both)


def test_gamma_0_broadcasts_each_segments_own_score() -> None:
    scores, ids = torch.tensor([[3.0, 3.0, 3.0, -1.0, -1.0]]), torch.tensor([[0, 0, 0, 1, 1]])
    ours = fgrl.ops.group_advantages(
        None, torch.zeros(1).long(), token_rewards=scores, segment_ids=ids, gamma=0.0, scale="none"
    )
    assert ours.tolist() == [[2, 2, 2, -2, -2]]  # centred over two scores, however long their segments are


def test_a_sequence_without_valid_tokens_is_in_no_group() -> None:
    """A filler row, whose reward may be anything, leaves the advantages of the others as they are."""
    inputs, mask = draw((5, 6), torch.float32), make_mask("holes", (5, 6))
    assert mask is not None
    inputs["groups"] = torch.tensor([1, 1, 1, 1, 2])
    mask[2] = False
    others = [0, 1, 3, 4]
    for scale in SCALES:
        expected = fgrl.ops.group_advantages(
            **{name: tensor[others] for name, tensor in inputs.items()}, mask=mask[others], scale=scale
        )
        for filler in (0.0, 1e30, NAN):
            inputs["rewards"][2] = filler
            ours = fgrl.ops.group_advantages(**inputs, mask=mask, scale=scale)
            torch.testing.assert_close(ours[others], expected, rtol=1e-6, atol=1e-6)
            assert (ours[2] == 0).all()


def test_a_nan_reward_stays_in_its_group() -> None:
    rewards, groups, mask = torch.tensor([1.0, NAN, 3.0, 5.0]), torch.tensor([0, 0, 1, 1]), torch.ones(4, 2)
    for baseline in ("mean", "leave-one-out"):
        ours = fgrl.ops.group_advantages(rewards, groups, mask, baseline=baseline)
        assert ours[:2].isnan().all()
        assert ours[2:].isfinite().all()


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("kind", ["holes", "masked-row", "all-masked"])
@pytest.mark.parametrize("has_segments", [True, False], ids=["segments", "tokens"])
def test_nothing_under_the_mask_is_seen_or_differentiated(has_segments: bool, kind: str, poison: float) -> None:
    inputs, mask = draw((5, 7), torch.float32), make_mask(kind, (5, 7))
    assert mask is not None
    ids = inputs.pop("segment_ids")
    constants = {"groups": inputs.pop("groups"), "mask": mask, "segment_ids": ids if has_segments else None}

    def total(**tensors: Tensor) -> Tensor:
        ours = fgrl.ops.group_advantages(**tensors, **constants, gamma=0.9, min_temperature=0.5)
        assert (ours[~mask] == 0).all()
        return ours.square().sum()

    clean = gradients(total, inputs)
    dirty_inputs = inputs | {"token_rewards": poisoned(inputs["token_rewards"], mask, poison)}
    dirty_inputs["rewards"] = torch.where(mask.any(1), inputs["rewards"], poison)
    if has_segments:
        constants["segment_ids"] = torch.where(mask, ids, -1)
    dirty = gradients(total, dirty_inputs)
    assert torch.equal(clean[0], dirty[0])
    for name in inputs:
        assert torch.equal(clean[1][name], dirty[1][name]), name
    assert (dirty[1]["token_rewards"][~mask] == 0).all()
    assert (dirty[1]["rewards"][~mask.any(1)] == 0).all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("lengths", [(7, 1, 4), (0, 5, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("given", ["outcome", "tokens", "all"])
def test_packed_equals_padded(given: str, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    dropped = {"outcome": ("token_rewards", "segment_ids"), "tokens": ("rewards", "segment_ids"), "all": ()}[given]
    inputs, mask = without(draw((3, 7)), *dropped), make_mask("holes", (3, 7))
    assert mask is not None
    mask = mask & (torch.arange(7) < torch.tensor(lengths)[:, None])
    padded = fgrl.ops.group_advantages(**inputs, mask=mask, gamma=0.9)
    tokens = {name: pack(tensor, lengths) for name, tensor in inputs.items() if tensor is not None and tensor.ndim == 2}
    packed = fgrl.ops.group_advantages(
        **inputs | tokens, mask=pack(mask, lengths), gamma=0.9, cu_seqlens=offsets(lengths, dtype)
    )
    torch.testing.assert_close(packed, pack(padded, lengths), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shift", [0, 300])
def test_low_precision_inputs_are_computed_in_fp32(shift: int, dtype: torch.dtype) -> None:
    """Far from 0, too, where an fp32 mean would cost three digits."""
    inputs, mask = draw((9, 129), torch.float32), make_mask("holes", (9, 129))
    inputs = {n: (t + shift).to(dtype) if t.is_floating_point() else t for n, t in inputs.items()}
    for names in (("segment_ids",), ()):
        kept = without(inputs, *names)
        ours = fgrl.ops.group_advantages(**kept, mask=mask, gamma=0.99)
        assert ours.dtype == torch.float32
        with fgrl.use_backend("reference"):
            plain = fgrl.ops.group_advantages(**kept, mask=mask, gamma=0.99)
            wide = {name: t.double() if name.endswith("rewards") else t for name, t in kept.items()}
            exact = fgrl.ops.group_advantages(**wide, mask=mask, gamma=0.99)
        assert_as_accurate(ours, plain, exact)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)], ids=str)
def test_empty_batches(shape: tuple[int, int]) -> None:
    ours = fgrl.ops.group_advantages(**draw(shape, torch.float32), mask=torch.ones(shape))
    assert ours.shape == shape
    assert ours.dtype == torch.float32


def test_gradients_where_all_rewards_are_equal() -> None:
    """The root of a variance of 0 has no derivative, and none may come out as NaN."""
    rewards = torch.ones(3, requires_grad=True)
    fgrl.ops.group_advantages(rewards, torch.zeros(3).long(), torch.ones(3, 2)).sum().backward()
    assert rewards.grad is not None
    assert rewards.grad.isfinite().all()


def test_gradients_are_those_of_the_oracle() -> None:
    inputs, mask = draw((4, 5)), make_mask("holes", (4, 5))
    assert mask is not None
    constants = {name: inputs.pop(name) for name in ("groups", "segment_ids")} | {"mask": mask}
    weights = torch.randn(4, 5, dtype=torch.float64)

    def total(**tensors: Tensor) -> Tensor:
        return (fgrl.ops.group_advantages(**tensors, **constants, gamma=0.9, min_temperature=0.5) * weights).sum()

    found = gradients(total, inputs)[1]
    for name in inputs:

        def value(flat: Any, name: str = name) -> float:
            changed = inputs | constants | {name: torch.as_tensor(flat).reshape(inputs[name].shape)}
            advantages = oracle(changed, mask, (4, 5), gamma=0.9, min_temperature=0.5)
            return float((advantages * oracles.flat(weights)).sum())

        expected = oracles.central_difference(value, oracles.flat(inputs[name]))
        torch.testing.assert_close(found[name].reshape(-1), torch.as_tensor(expected), rtol=1e-5, atol=1e-7)
