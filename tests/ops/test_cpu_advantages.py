"""`gae` and `token_advantages` in C++: sizes at the edges of vectors and chunks, layouts, mask dtypes, threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from numerics import assert_as_accurate, make_mask, offsets, pack

import fgrl
from fgrl import backend

pytestmark = [
    pytest.mark.skipif(
        backend.resolve("gae", torch.device("cpu")) != "cpp", reason="the C++ extension does not run here"
    ),
    pytest.mark.usefixtures("each_cpu_capability"),
]

# Around the widths of vectors (4, 8, 16 lanes) and of chunks (512), and several chunks.
LENGTHS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 511, 512, 513, 1537)
OPTIONS: dict[str, Any] = {"gamma": 0.99, "lam": 0.9}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(batch: int, length: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    names = ("token_rewards", "values", "logprobs", "ref_logprobs")
    return {name: torch.randn(batch, length).to(dtype) for name in names}


def results(inputs: dict[str, torch.Tensor], mask: torch.Tensor | None, **options: Any) -> list[torch.Tensor]:
    plain = fgrl.ops.gae(inputs["token_rewards"], inputs["values"], mask, **OPTIONS, **options)
    shaped = fgrl.ops.token_advantages(
        **inputs, mask=mask, kl_coef=0.1, kl_estimator="k3", reward_clip=1.0, **OPTIONS, **options
    )
    return [*plain, *shaped]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["none", "tails", "holes", "masked-row"])
@pytest.mark.parametrize("length", LENGTHS)
def test_as_accurate_as_the_reference(length: int, kind: str, dtype: torch.dtype) -> None:
    inputs = draw(3, length, dtype)
    mask = make_mask(kind, (3, length)) if length else None
    ours = results(inputs, mask)
    with fgrl.use_backend("reference"):
        plain = results(inputs, mask)
        exact = results({name: tensor.double() for name, tensor in inputs.items()}, mask)
    for one, other, truth in zip(ours[:-1], plain, exact, strict=False):
        assert one.dtype == other.dtype
        assert_as_accurate(one, other, truth)
    # Three sums over many tokens have one rounding error each, and the baseline's may be 0 by luck; but they are those
    # of the advantages that were returned, to fp64 rounding.
    advantages, moments = ours[2].double(), ours[-1]
    count = float(3 * length if mask is None else mask.sum())
    torch.testing.assert_close(
        moments, torch.stack([torch.tensor(count).double(), advantages.sum(), advantages.square().sum()])
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("lam", [0.0, 1e-9, 0.9])
@pytest.mark.parametrize("place", [0, 20, 600, 1199])
def test_what_is_not_finite_spreads_as_in_the_reference(place: int, lam: float, bad: float) -> None:
    rewards, values = torch.randn(1, 1200), torch.randn(1, 1200)
    rewards[0, place] = bad
    ours = fgrl.ops.gae(rewards, values, lam=lam)
    with fgrl.use_backend("reference"):
        expected = fgrl.ops.gae(rewards, values, lam=lam)
    torch.testing.assert_close(ours.advantages, expected.advantages, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.int64, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_masks_of_every_dtype(dtype: torch.dtype) -> None:
    inputs, mask = draw(3, 700), make_mask("holes", (3, 700))
    assert mask is not None
    for one, other in zip(results(inputs, mask), results(inputs, mask.to(dtype)), strict=True):
        assert torch.equal(one, other)


def test_strided_inputs() -> None:
    inputs, mask = draw(5, 300), make_mask("holes", (5, 300))
    assert mask is not None
    strided = {name: tensor.t().contiguous().t() for name, tensor in inputs.items()}
    for one, other in zip(results(inputs, mask), results(strided, mask.t().contiguous().t()), strict=True):
        assert torch.equal(one, other)


def test_same_bits_packed_and_on_any_number_of_threads(threads: None) -> None:
    batch, length = 64, 1100
    lengths = [(i * 37) % length for i in range(batch)]
    inputs, mask = draw(batch, length), make_mask("holes", (batch, length))
    assert mask is not None
    mask &= torch.arange(length) < torch.tensor(lengths)[:, None]
    torch.set_num_threads(1)
    expected = results(inputs, mask)
    for count in (2, 4):
        torch.set_num_threads(count)
        for one, other in zip(results(inputs, mask), expected, strict=True):
            assert torch.equal(one, other)
    packed = results(
        {name: pack(tensor, lengths) for name, tensor in inputs.items()},
        pack(mask, lengths),
        cu_seqlens=offsets(lengths),
    )
    for one, other in zip(packed[:-1], expected[:-1], strict=True):
        assert torch.equal(one, pack(other, lengths))
    assert torch.equal(packed[-1], expected[-1])
