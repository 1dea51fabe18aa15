"""`gae` against a quadratic double sum, and what masks, packing, lambda and the bootstrap mean."""

from __future__ import annotations

import numpy as np
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

pytestmark = pytest.mark.usefixtures("each_backend")


def draw(shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return {
        "rewards": torch.randn(shape, dtype=dtype),
        "values": torch.randn(shape, dtype=dtype),
        "bootstrap": torch.randn(shape[0], dtype=dtype),
    }


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_the_double_sum(shape: tuple[int, int], kind: str) -> None:
    inputs, mask = draw(shape), make_mask(kind, shape)
    sequences = oracles.sequences_of(shape, mask)
    result = fgrl.ops.gae(inputs["rewards"], inputs["values"], mask, gamma=0.97, lam=0.9, bootstrap=inputs["bootstrap"])
    advantages, returns = oracles.gae(
        oracles.flat(inputs["rewards"]),
        oracles.flat(inputs["values"]),
        sequences,
        0.97,
        [0.9] * shape[0],
        oracles.flat(inputs["bootstrap"]),
    )
    assert_equals_oracle(result.advantages, advantages)
    assert_equals_oracle(result.returns, returns)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_gamma_and_lam_at_their_limits(gamma: float, lam: float) -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    result = fgrl.ops.gae(**inputs, mask=mask, gamma=gamma, lam=lam)
    expected = oracles.gae(
        oracles.flat(inputs["rewards"]),
        oracles.flat(inputs["values"]),
        oracles.sequences_of((3, 7), mask),
        gamma,
        [lam] * 3,
        oracles.flat(inputs["bootstrap"]),
    )
    assert_equals_oracle(result.advantages, expected[0])


def test_defaults_are_gamma_1_lam_095_and_no_bootstrap() -> None:
    inputs = draw((2, 5))
    rewards, values = inputs["rewards"], inputs["values"]
    default = fgrl.ops.gae(rewards, values)
    explicit = fgrl.ops.gae(rewards, values, gamma=1.0, lam=0.95, bootstrap=torch.zeros(2, dtype=torch.float64))
    assert torch.equal(default.advantages, explicit.advantages)


def test_lam_of_each_sequence() -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    lam = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    together = fgrl.ops.gae(**inputs, mask=mask, gamma=0.9, lam=lam)
    for row in range(3):
        alone = fgrl.ops.gae(
            **{name: tensor[row : row + 1] for name, tensor in inputs.items()},
            mask=mask[row : row + 1],
            gamma=0.9,
            lam=float(lam[row]),
        )
        assert torch.equal(together.advantages[row], alone.advantages[0])


def test_a_hole_is_as_if_it_were_cut_out() -> None:
    inputs = draw((1, 6))
    mask = torch.tensor([[True, True, False, False, True, True]])
    whole = fgrl.ops.gae(**inputs, mask=mask, gamma=0.9, lam=0.8)
    cut = fgrl.ops.gae(
        inputs["rewards"][mask][None], inputs["values"][mask][None], gamma=0.9, lam=0.8, bootstrap=inputs["bootstrap"]
    )
    assert torch.equal(whole.advantages[mask], cut.advantages[0])
    assert torch.equal(whole.returns[mask], cut.returns[0])


def test_bootstrap_is_the_value_after_the_last_valid_token() -> None:
    values = torch.tensor([[1.0, 2.0, 9.0]])
    mask = torch.tensor([[1, 1, 0]])
    result = fgrl.ops.gae(torch.zeros(1, 3), values, mask, gamma=0.5, lam=0.0, bootstrap=torch.tensor([8.0]))
    assert result.advantages.tolist() == [[0.0, 2.0, 0.0]]
    assert result.returns.tolist() == [[1.0, 4.0, 0.0]]


@pytest.mark.parametrize("kind", ["holes", "masked-row", "all-masked"])
@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_nothing_under_the_mask_is_seen_or_differentiated(kind: str, poison: float) -> None:
    inputs, mask = draw((3, 7), torch.float32), make_mask(kind, (3, 7))

    def total(rewards: torch.Tensor, values: torch.Tensor, bootstrap: torch.Tensor) -> torch.Tensor:
        result = fgrl.ops.gae(rewards, values, mask, gamma=0.9, lam=0.8, bootstrap=bootstrap)
        assert (result.advantages[~mask] == 0).all()
        assert (result.returns[~mask] == 0).all()
        return (result.advantages.square() + result.returns.sin()).sum()

    clean = gradients(total, inputs)
    dirty_inputs = inputs | {name: poisoned(inputs[name], mask, poison) for name in ("rewards", "values")}
    dirty = gradients(total, dirty_inputs)
    assert torch.equal(clean[0], dirty[0])
    for name in inputs:
        assert torch.equal(clean[1][name], dirty[1][name]), name
    assert (dirty[1]["rewards"][~mask] == 0).all()
    assert (dirty[1]["values"][~mask] == 0).all()


def test_the_bootstrap_of_a_sequence_without_valid_tokens_is_not_seen() -> None:
    mask = torch.tensor([[1, 1], [0, 0]])
    bootstrap = torch.tensor([0.5, float("nan")], requires_grad=True)
    result = fgrl.ops.gae(torch.ones(2, 2), torch.ones(2, 2), mask, bootstrap=bootstrap)
    result.advantages.sum().backward()
    assert result.advantages[1].tolist() == [0.0, 0.0]
    assert bootstrap.grad is not None
    assert bootstrap.grad[1] == 0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("lengths", [(7, 1, 4), (0, 5, 0), (0, 0, 0)], ids=str)
def test_packed_equals_padded(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    assert mask is not None
    inside = torch.arange(7) < torch.tensor(lengths)[:, None]
    packed_inputs = {name: pack(inputs[name], lengths) for name in ("rewards", "values")}
    lam = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    options = {"gamma": 0.9, "lam": lam}

    def padded_total(rewards: torch.Tensor, values: torch.Tensor, bootstrap: torch.Tensor) -> torch.Tensor:
        result = fgrl.ops.gae(rewards, values, mask & inside, bootstrap=bootstrap, **options)
        return (result.advantages.square() + result.returns.sin()).sum()

    def packed_total(rewards: torch.Tensor, values: torch.Tensor, bootstrap: torch.Tensor) -> torch.Tensor:
        result = fgrl.ops.gae(
            rewards,
            values,
            pack(mask, lengths),
            bootstrap=bootstrap,
            cu_seqlens=offsets(lengths, dtype),
            **options,
        )
        assert result.advantages.shape == rewards.shape
        return (result.advantages.square() + result.returns.sin()).sum()

    padded = gradients(padded_total, inputs)
    packed = gradients(packed_total, packed_inputs | {"bootstrap": inputs["bootstrap"]})
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-12, atol=1e-12)
    for name in ("rewards", "values"):
        torch.testing.assert_close(unpack(packed[1][name], lengths, 7), padded[1][name], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(packed[1]["bootstrap"], padded[1]["bootstrap"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)], ids=str)
def test_empty_batches(shape: tuple[int, int]) -> None:
    result = fgrl.ops.gae(torch.zeros(shape), torch.zeros(shape))
    assert result.advantages.shape == result.returns.shape == shape


@pytest.mark.parametrize("cu_seqlens", [[0], [0, 0, 0]], ids=["no sequence", "two empty ones"])
def test_nothing_packed(cu_seqlens: list[int]) -> None:
    result = fgrl.ops.gae(torch.zeros(0), torch.zeros(0), cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32))
    assert result.advantages.shape == result.returns.shape == (0,)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.bfloat16, torch.float64], ids=str
)
def test_masks_of_every_dtype(dtype: torch.dtype) -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    assert mask is not None
    expected = fgrl.ops.gae(**inputs, mask=mask)
    assert torch.equal(fgrl.ops.gae(**inputs, mask=mask.to(dtype)).advantages, expected.advantages)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs_are_computed_in_fp32(dtype: torch.dtype) -> None:
    shape = (4, 257)  # long enough for a recursion in bf16 to drift
    inputs = {name: tensor.to(dtype) for name, tensor in draw(shape, torch.float32).items()}
    mask = make_mask("holes", shape)
    assert mask is not None
    ours = fgrl.ops.gae(**inputs, mask=mask, gamma=0.99, lam=0.95)
    exact = fgrl.reference.gae(
        **{name: tensor.double() for name, tensor in inputs.items()}, mask=mask, gamma=0.99, lam=0.95
    )
    assert ours.advantages.dtype == ours.returns.dtype == torch.float32
    # To fp32 rounding: the inputs were low precision, the recursion was not (in bf16 it is off by 1).
    assert_as_accurate(ours.advantages, exact.advantages, exact.advantages, eps=3e-5)
    assert_as_accurate(ours.returns, exact.returns, exact.returns, eps=3e-5)


def test_gradients_in_float64() -> None:
    inputs, mask = draw((2, 5)), make_mask("holes", (2, 5))
    lam = torch.tensor([0.3, 0.8], dtype=torch.float64)
    leaves = [inputs[name].requires_grad_() for name in ("rewards", "values", "bootstrap")]
    assert torch.autograd.gradcheck(
        lambda r, v, b: tuple(fgrl.ops.gae(r, v, mask, gamma=0.9, lam=lam, bootstrap=b)), leaves
    )


def test_non_contiguous_inputs() -> None:
    inputs = draw((7, 3))
    rewards, values = inputs["rewards"].T, inputs["values"].T
    assert torch.equal(
        fgrl.ops.gae(rewards, values).advantages, fgrl.ops.gae(rewards.contiguous(), values.contiguous()).advantages
    )


def test_inputs_are_not_written() -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    copies = {name: tensor.clone() for name, tensor in inputs.items()}
    result = fgrl.ops.gae(**inputs, mask=mask)
    result.advantages.zero_(), result.returns.zero_()
    for name, copy in copies.items():
        assert np.array_equal(inputs[name].numpy(), copy.numpy()), name


def test_same_bits_twice() -> None:
    inputs, mask = draw((5, 33), torch.float32), make_mask("holes", (5, 33))
    first, second = (fgrl.ops.gae(**inputs, mask=mask) for _ in range(2))
    assert torch.equal(first.advantages, second.advantages)
