"""`token_advantages`: reward shaping, the KL penalty and the moments, on top of `gae`."""

from __future__ import annotations

from typing import Any

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
)

import fgrl

pytestmark = pytest.mark.usefixtures("each_backend")

TOKEN_INPUTS = ("token_rewards", "values", "logprobs", "ref_logprobs")
ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k2+", "k3+", "abs+")


def draw(shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return {
        "token_rewards": torch.randn(shape, dtype=dtype),
        "values": torch.randn(shape, dtype=dtype),
        "logprobs": -torch.rand(shape, dtype=dtype) * 3,
        "ref_logprobs": -torch.rand(shape, dtype=dtype) * 3,
        "sequence_rewards": torch.randn(shape[0], dtype=dtype),
        "bootstrap": torch.randn(shape[0], dtype=dtype),
    }


def oracle(inputs: dict[str, torch.Tensor], mask: torch.Tensor | None, **options: Any) -> tuple[Any, ...]:
    shape = tuple(inputs["values"].shape)
    return oracles.token_advantages(
        *(oracles.flat(inputs[name]) for name in TOKEN_INPUTS),
        oracles.sequences_of(shape, mask),
        sequence_rewards=oracles.flat(inputs["sequence_rewards"]),
        bootstrap=oracles.flat(inputs["bootstrap"]),
        **options,
    )


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_the_oracle(shape: tuple[int, int], kind: str) -> None:
    inputs, mask = draw(shape), make_mask(kind, shape)
    options = {"reward_scale": 2.0, "reward_clip": 0.7, "kl_coef": 0.3, "kl_estimator": "k3", "gamma": 0.97}
    result = fgrl.ops.token_advantages(**inputs, mask=mask, lam=0.9, **options)
    advantages, returns, kl, moments = oracle(inputs, mask, lam=[0.9] * shape[0], **options)
    assert_equals_oracle(result.advantages, advantages)
    assert_equals_oracle(result.returns, returns)
    assert_equals_oracle(result.kl, kl)
    assert_equals_oracle(result.moments, moments)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_estimators(estimator: str) -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    result = fgrl.ops.token_advantages(**inputs, mask=mask, kl_coef=0.5, kl_estimator=estimator)
    advantages, _, kl, _ = oracle(inputs, mask, kl_coef=0.5, kl_estimator=estimator, lam=[0.95] * 3)
    assert_equals_oracle(result.advantages, advantages)
    assert_equals_oracle(result.kl, kl)


def test_k3_is_exact_near_zero() -> None:
    """`exp(d) - d - 1` cancels to 0 or to a negative number in fp32 for a small d; the KL must do neither."""
    difference = torch.tensor([[1e-3, -1e-3, 3e-4]])
    zeros = torch.zeros(1, 3)
    kl = fgrl.ops.token_advantages(None, zeros, difference, zeros, kl_estimator="k3").kl
    torch.testing.assert_close(kl.double(), difference.double().square() / 2, rtol=1e-3, atol=0)


def test_a_kl_without_weight_cannot_spoil_the_rewards() -> None:
    """k3 overflows fp32 beyond 88 nats; with `kl_coef=0` only the `kl` that is reported may."""
    logprobs, ref = torch.full((1, 2), -100.0), torch.zeros(1, 2)
    result = fgrl.ops.token_advantages(torch.ones(1, 2), torch.zeros(1, 2), logprobs, ref, kl_estimator="k3", lam=1.0)
    assert result.advantages.tolist() == [[2.0, 1.0]]


def test_rewards_are_clipped_before_they_are_scaled() -> None:
    rewards = torch.tensor([[-5.0, 0.25, 5.0]])
    zeros = torch.zeros(1, 3)
    result = fgrl.ops.token_advantages(rewards, zeros, None, None, reward_clip=0.5, reward_scale=10.0, lam=0.0)
    assert result.advantages.tolist() == [[-5.0, 2.5, 5.0]]


@pytest.mark.parametrize("pair", [(-1.0, 2.0), [-1, 2], (np.float32(-1), np.int64(2))], ids=["tuple", "list", "NumPy"])
def test_reward_clip_as_a_pair_of_bounds(pair: Any) -> None:
    rewards = torch.tensor([[-5.0, 0.25, 5.0]])
    result = fgrl.ops.token_advantages(rewards, torch.zeros(1, 3), None, None, reward_clip=pair, lam=0.0)
    assert result.advantages.tolist() == [[-1.0, 0.25, 2.0]]


def test_the_sequence_reward_goes_to_the_last_valid_token_as_it_is() -> None:
    """Neither scaled nor clipped, and never on padding after the end or on a hole."""
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    result = fgrl.ops.token_advantages(
        None,
        torch.zeros(3, 5),
        None,
        None,
        mask,
        sequence_rewards=torch.tensor([7.0, 8.0, 9.0]),
        reward_scale=100.0,
        reward_clip=0.1,
        lam=0.0,
    )
    assert result.advantages.tolist() == [[0, 0, 0, 7, 0], [8, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_the_sequence_reward_of_a_sequence_without_valid_tokens_is_not_seen() -> None:
    rewards = torch.tensor([1.0, float("nan")], requires_grad=True)
    result = fgrl.ops.token_advantages(
        None, torch.zeros(2, 2), None, None, torch.tensor([[1, 1], [0, 0]]), sequence_rewards=rewards
    )
    (result.advantages.sum() + result.moments.sum()).backward()
    assert result.advantages[1].tolist() == [0.0, 0.0]
    assert rewards.grad is not None
    assert rewards.grad[1] == 0


def test_rewards_on_the_last_token_alone_are_ordinary_ppo() -> None:
    inputs, mask = draw((3, 7)), make_mask("tails", (3, 7))
    assert mask is not None
    shared = {"values": inputs["values"], "mask": mask, "lam": 0.9, "bootstrap": inputs["bootstrap"]}
    last = torch.zeros(3, 7, dtype=torch.float64)
    last[torch.arange(3), mask.sum(1) - 1] = inputs["sequence_rewards"]
    dense = fgrl.ops.token_advantages(last, logprobs=None, ref_logprobs=None, **shared)
    sparse = fgrl.ops.token_advantages(
        None, logprobs=None, ref_logprobs=None, sequence_rewards=inputs["sequence_rewards"], **shared
    )
    # A kernel adds the score to what is ahead of the last token, not to its reward: the same but for rounding.
    torch.testing.assert_close(dense.advantages, sparse.advantages, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("kind", ["holes", "masked-row", "all-masked"])
def test_nothing_under_the_mask_is_seen_or_differentiated(kind: str, poison: float) -> None:
    inputs, mask = draw((3, 7), torch.float32), make_mask(kind, (3, 7))

    def total(**tensors: torch.Tensor) -> torch.Tensor:
        result = fgrl.ops.token_advantages(
            **tensors, mask=mask, reward_clip=0.5, kl_coef=0.2, kl_estimator="k3", gamma=0.9
        )
        for name in ("advantages", "returns", "kl"):
            assert (getattr(result, name)[~mask] == 0).all(), name
        return result.advantages.square().sum() + result.returns.sin().sum() + result.kl.sum() + result.moments.sum()

    clean = gradients(total, inputs)
    dirty = gradients(total, inputs | {name: poisoned(inputs[name], mask, poison) for name in TOKEN_INPUTS})
    assert torch.equal(clean[0], dirty[0])
    for name in inputs:
        assert torch.equal(clean[1][name], dirty[1][name]), name
    for name in TOKEN_INPUTS:
        assert (dirty[1][name][~mask] == 0).all(), name


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("lengths", [(7, 1, 4), (0, 5, 0), (0, 0, 0)], ids=str)
def test_packed_equals_padded(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    assert mask is not None
    mask = mask & (torch.arange(7) < torch.tensor(lengths)[:, None])
    options = {"kl_coef": 0.3, "gamma": 0.9, "lam": torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)}
    padded = fgrl.ops.token_advantages(**inputs, mask=mask, **options)
    packed_inputs = {name: pack(tensor, lengths) if name in TOKEN_INPUTS else tensor for name, tensor in inputs.items()}
    packed = fgrl.ops.token_advantages(
        **packed_inputs, mask=pack(mask, lengths), cu_seqlens=offsets(lengths, dtype), **options
    )
    for name in ("advantages", "returns", "kl"):
        torch.testing.assert_close(getattr(packed, name), pack(getattr(padded, name), lengths), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(packed.moments, padded.moments, rtol=1e-12, atol=1e-12)


def test_moments_are_float64_over_the_valid_advantages() -> None:
    inputs, mask = draw((3, 7), torch.float32), make_mask("holes", (3, 7))
    result = fgrl.ops.token_advantages(**inputs, mask=mask)
    valid = result.advantages[mask].double()
    assert result.moments.dtype == torch.float64
    expected = torch.stack([torch.tensor(float(len(valid))).double(), valid.sum(), valid.square().sum()])
    torch.testing.assert_close(result.moments, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs_are_computed_in_fp32(dtype: torch.dtype) -> None:
    inputs = {name: tensor.to(dtype) for name, tensor in draw((3, 129)).items()}
    mask = make_mask("holes", (3, 129))
    options = {"kl_coef": 0.3, "kl_estimator": "k3", "reward_clip": 1.0, "reward_scale": 0.5, "gamma": 0.99}
    ours = fgrl.ops.token_advantages(**inputs, mask=mask, **options)
    exact = fgrl.reference.token_advantages(
        **{name: tensor.double() for name, tensor in inputs.items()}, mask=mask, **options
    )
    for name in ("advantages", "returns", "kl"):
        assert getattr(ours, name).dtype == torch.float32
        assert_as_accurate(getattr(ours, name), getattr(exact, name), getattr(exact, name), eps=3e-5, message=name)


def test_gradients_in_float64() -> None:
    inputs, mask = draw((2, 4)), make_mask("holes", (2, 4))
    names = list(inputs)

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(
            fgrl.ops.token_advantages(
                **dict(zip(names, tensors, strict=True)), mask=mask, kl_coef=0.4, kl_estimator="k3", gamma=0.9
            )
        )

    assert torch.autograd.gradcheck(run, [inputs[name].requires_grad_() for name in names])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=str)
def test_empty_batches(shape: tuple[int, int]) -> None:
    zeros = torch.zeros(shape)
    result = fgrl.ops.token_advantages(zeros, zeros, zeros, zeros, sequence_rewards=torch.ones(shape[0]))
    assert result.advantages.shape == result.returns.shape == result.kl.shape == shape
    assert result.moments.tolist() == [0.0, 0.0, 0.0]


def test_nothing_packed() -> None:
    zeros = torch.zeros(0)
    result = fgrl.ops.token_advantages(
        zeros, zeros, zeros, zeros, sequence_rewards=torch.ones(2), cu_seqlens=torch.zeros(3, dtype=torch.int32)
    )
    assert result.advantages.shape == (0,)
    assert result.moments.tolist() == [0.0, 0.0, 0.0]


def test_results_share_no_memory_with_each_other_or_the_inputs() -> None:
    values = torch.ones(1, 3)
    result = fgrl.ops.token_advantages(None, values, None, None)
    storages = {tensor.data_ptr() for tensor in (*result, values)}
    assert len(storages) == 5
