"""The kernels of `whiten`: several blocks and programs, tails, masks, and means far larger than what is around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numerics import MASKS, POISONS, assert_as_accurate, make_mask, poisoned

import fgrl
from fgrl import reference

pytestmark = pytest.mark.usefixtures("on_triton")

BLOCK = 64


@pytest.fixture(autouse=True)
def small_blocks(launch_with: Any, request: Any) -> None:
    if not request.node.name.startswith("test_shipped"):
        launch_with("whiten.moments", "whiten.whiten_tokens", block=BLOCK, max_programs=2)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("width", [1, BLOCK // 2, BLOCK // 2 + 1, 3 * BLOCK + 5])
def test_several_blocks_a_program(width: int, kind: str, device: torch.device) -> None:
    advantages, mask = torch.randn(2, width, device=device), make_mask(kind, (2, width))
    mask = None if mask is None else mask.to(device)
    ours = fgrl.ops.whiten(advantages, mask)
    plain, exact = reference.whiten(advantages, mask), reference.whiten(advantages.double(), mask)
    assert_as_accurate(ours, plain, exact)
    for poison in POISONS.values():
        assert torch.equal(fgrl.ops.whiten(poisoned(advantages, mask, poison), mask), ours)


@pytest.mark.parametrize("mean", [1e3, -1e5, 1e7])
@pytest.mark.parametrize("spread", [1e-2, 1.0, 1e3])
def test_a_mean_far_larger_than_the_spread(spread: float, mean: float, device: torch.device) -> None:
    """The inputs are what fp32 makes of them; from there no more is lost than in fp64, rounded once."""
    advantages = mean + spread * torch.randn(3 * BLOCK + 5, device=device)
    wide = advantages.double()
    moments = torch.stack([wide.new_tensor(float(wide.numel())), wide.sum(), wide.square().sum()])
    centred = wide - moments[1] / moments[0]
    ours = fgrl.ops.whiten(advantages, None, moments).double()
    variance = (moments[2] - moments[1] * (moments[1] / moments[0])) / (moments[0] - 1)
    expected = centred / (variance.clamp(min=0) + 1e-8).sqrt()
    torch.testing.assert_close(ours, expected, rtol=4e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_masks_of_every_dtype(dtype: torch.dtype, device: torch.device) -> None:
    advantages, mask = torch.randn(2, BLOCK + 3, device=device), make_mask("holes", (2, BLOCK + 3))
    assert mask is not None
    expected = fgrl.ops.whiten(advantages, mask.to(device))
    assert torch.equal(fgrl.ops.whiten(advantages, mask.to(device, dtype)), expected)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)], ids=str)
def test_nothing(shape: tuple[int, ...], device: torch.device) -> None:
    assert fgrl.ops.whiten(torch.empty(shape, device=device), None).shape == shape


@pytest.mark.parametrize("kind", ["none", "holes"])
def test_shipped_blocks(kind: str, device: torch.device) -> None:
    advantages, mask = torch.randn(3, 1000, device=device), make_mask(kind, (3, 1000))
    mask = None if mask is None else mask.to(device)
    ours = fgrl.ops.whiten(advantages, mask)
    assert_as_accurate(ours, reference.whiten(advantages, mask), reference.whiten(advantages.double(), mask))
