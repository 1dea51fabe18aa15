"""`whiten` in C++: sizes at the edges of vectors and blocks, means far from 0, threads."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_as_accurate, make_mask

import fgrl
from fgrl import backend

pytestmark = [
    pytest.mark.skipif(
        backend.resolve("whiten", torch.device("cpu")) != "cpp", reason="the C++ extension does not run here"
    ),
    pytest.mark.usefixtures("each_cpu_capability"),
]

# Around the widths of vectors (4, 8, 16 lanes) and of blocks (4096), and several blocks.
SIZES = (0, 1, 2, 3, 7, 9, 15, 17, 33, 4095, 4096, 4097, 12289)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["none", "holes", "one-token", "all-masked"])
@pytest.mark.parametrize("size", SIZES)
def test_as_accurate_as_the_reference(size: int, kind: str, dtype: torch.dtype) -> None:
    """A mean of 300 leaves fp32 four digits of the whitened value, were it not computed in fp64."""
    advantages = (torch.randn(1, size) + 300).to(dtype)
    mask = make_mask(kind, (1, size)) if size else None
    ours = fgrl.ops.whiten(advantages, mask)
    with fgrl.use_backend("reference"):
        plain, exact = fgrl.ops.whiten(advantages, mask), fgrl.ops.whiten(advantages.double(), mask)
    assert ours.dtype == plain.dtype
    assert_as_accurate(ours, plain, exact)


def test_same_bits_on_any_number_of_threads() -> None:
    advantages, mask = torch.randn(64, 2049), torch.rand(64, 2049) < 0.7
    expected = fgrl.ops.whiten(advantages, mask)
    before = torch.get_num_threads()
    try:
        for threads in (2, 4):
            torch.set_num_threads(threads)
            assert torch.equal(fgrl.ops.whiten(advantages, mask), expected)
    finally:
        torch.set_num_threads(before)


def test_strided_advantages_and_masks() -> None:
    advantages, mask = torch.randn(50, 130), torch.rand(50, 130) < 0.7
    expected = fgrl.ops.whiten(advantages, mask)
    torch.testing.assert_close(fgrl.ops.whiten(advantages.t(), mask.t()).t(), expected)
