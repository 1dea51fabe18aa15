"""`whiten`: moments of one tensor, of several, and of several processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numerics import MASKS, POISONS, SHAPES, gradients, make_mask, poisoned

import fgrl

pytestmark = pytest.mark.usefixtures("each_backend")


def moments(advantages: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    valid = (advantages if mask is None else advantages[mask]).double()
    return torch.stack([torch.tensor(float(valid.numel())).double(), valid.sum(), valid.square().sum()])


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_numpy(shape: tuple[int, int], kind: str) -> None:
    advantages, mask = torch.randn(shape, dtype=torch.float64) * 3 + 5, make_mask(kind, shape)
    ours = fgrl.ops.whiten(advantages, mask)
    valid = advantages.numpy()[np.ones(shape, bool) if mask is None else mask.numpy()]
    variance = valid.var(ddof=1) if valid.size > 1 else 0.0
    expected = np.zeros(shape)
    expected[np.ones(shape, bool) if mask is None else mask.numpy()] = (
        (valid - valid.mean()) / np.sqrt(variance + 1e-8) if valid.size else 0.0
    )
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_mean_0_and_variance_1() -> None:
    mask = make_mask("holes", (4, 50))
    whitened = fgrl.ops.whiten(torch.randn(4, 50) * 7 + 3, mask)[mask]
    assert abs(float(whitened.mean())) < 1e-6
    assert abs(float(whitened.std()) - 1) < 1e-6


def test_moments_of_parts_whiten_like_the_whole() -> None:
    parts = [torch.randn(2, 5), torch.randn(3, 7) * 10 + 4, torch.randn(1, 1)]
    masks = [make_mask(kind, tuple(part.shape)) for kind, part in zip(("holes", "tails", "full"), parts, strict=True)]
    total = sum((moments(part, mask) for part, mask in zip(parts, masks, strict=True)), torch.zeros(3).double())
    whole = fgrl.ops.whiten(
        torch.cat([part.reshape(-1) for part in parts]), torch.cat([mask.reshape(-1) for mask in masks])
    )
    separate = [fgrl.ops.whiten(part, mask, total) for part, mask in zip(parts, masks, strict=True)]
    torch.testing.assert_close(torch.cat([part.reshape(-1) for part in separate]), whole, rtol=1e-6, atol=1e-6)


def test_moments_of_token_advantages_are_those_it_needs() -> None:
    mask = make_mask("holes", (3, 9))
    result = fgrl.ops.token_advantages(torch.randn(3, 9), torch.randn(3, 9), None, None, mask)
    torch.testing.assert_close(
        fgrl.ops.whiten(result.advantages, mask, result.moments), fgrl.ops.whiten(result.advantages, mask)
    )


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5], ids=str)
def test_a_large_mean_does_not_cost_the_variance(offset: float) -> None:
    advantages = (torch.randn(1, 999) + offset).float()
    exact = advantages.double()
    exact = (exact - exact.mean()) / exact.std()
    torch.testing.assert_close(fgrl.ops.whiten(advantages, None).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, 517914.96875], ids=str)
def test_equal_advantages_become_zero(value: float) -> None:
    """The last one's variance, of 43 tokens from rounded moments, is below 0."""
    whitened = fgrl.ops.whiten(torch.full((1, 43), value), None)
    assert float(whitened.abs().max()) < 1e-5


def test_one_valid_token_becomes_zero() -> None:
    assert fgrl.ops.whiten(torch.tensor([[3.0, float("nan")]]), torch.tensor([[1, 0]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("kind", ["holes", "masked-row", "all-masked"])
def test_nothing_under_the_mask_is_seen_or_differentiated(kind: str, poison: float) -> None:
    advantages, mask = torch.randn(3, 7), make_mask(kind, (3, 7))
    weights = torch.randn(3, 7)

    def total(advantages: torch.Tensor) -> torch.Tensor:
        whitened = fgrl.ops.whiten(advantages, mask)
        assert (whitened[~mask] == 0).all()
        return (whitened * weights).sum()

    clean = gradients(total, {"advantages": advantages})
    dirty = gradients(total, {"advantages": poisoned(advantages, mask, poison)})
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1]["advantages"], dirty[1]["advantages"])
    assert (dirty[1]["advantages"][~mask] == 0).all()


def test_gradients_in_float64() -> None:
    mask = make_mask("holes", (2, 4))
    advantages = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: fgrl.ops.whiten(a, mask), [advantages])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs(dtype: torch.dtype) -> None:
    advantages = torch.randn(3, 65).to(dtype)
    ours = fgrl.ops.whiten(advantages, None)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), fgrl.ops.whiten(advantages.double(), None), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 3, 4), ()], ids=str)
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert fgrl.ops.whiten(torch.randn(shape), None).shape == shape


@pytest.mark.parametrize("every", [slice(None, None, 2), slice(3, 50)], ids=["other", "of the middle"])
def test_strided_inputs(every: slice) -> None:
    """Among them one that flattens without a copy, which leaves it strided."""
    advantages, mask = torch.randn(4, 100), make_mask("holes", (4, 100))
    assert mask is not None
    for part, kept in ((advantages[:, every], mask[:, every]), (advantages[0, every], mask[0, every])):
        expected = fgrl.ops.whiten(part.clone(memory_format=torch.contiguous_format), kept.clone())
        assert torch.equal(fgrl.ops.whiten(part, kept), expected)


def test_moments_are_not_written() -> None:
    total = torch.tensor([2.0, 1.0, 5.0], dtype=torch.float64)
    fgrl.ops.whiten(torch.randn(2), None, total)
    assert total.tolist() == [2.0, 1.0, 5.0]


def _whiten_part(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.manual_seed(rank)
    advantages = torch.randn(2, 4 + rank) * (1 + rank)
    mask = torch.rand(advantages.shape) < 0.7
    given = moments(advantages, mask)
    whitened = fgrl.ops.whiten(advantages, mask, group=dist.group.WORLD)
    from_moments = fgrl.ops.whiten(advantages, mask, given, group=dist.group.WORLD)
    assert torch.equal(given, moments(advantages, mask))  # reduced in a copy
    alone = fgrl.ops.whiten(advantages, mask)
    torch.save(
        {"advantages": advantages, "mask": mask, "whitened": whitened, "from_moments": from_moments, "alone": alone},
        Path(results) / f"{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
def test_two_processes_whiten_as_one(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    torch.multiprocessing.spawn(_whiten_part, args=(store, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = fgrl.ops.whiten(
        torch.cat([part["advantages"].reshape(-1) for part in parts]),
        torch.cat([part["mask"].reshape(-1) for part in parts]),
    )
    for name in ("whitened", "from_moments"):
        torch.testing.assert_close(torch.cat([part[name].reshape(-1) for part in parts]), whole)
    assert not torch.allclose(parts[0]["alone"], parts[0]["whitened"])
