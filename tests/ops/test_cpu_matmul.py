"""The matrix product in C++: sizes at the edges of tiles and blocks, any strides, bf16 in pairs, threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fgrl.ops  # noqa: F401  (defines torch.ops.fgrl)
from fgrl import extension
from fgrl.ops._matmul import Head

pytestmark = [
    pytest.mark.skipif(not extension.available(), reason="the C++ extension does not run here"),
    pytest.mark.usefixtures("each_cpu_capability"),
]

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def needs_bf16(request: Any, each_cpu_capability: str) -> None:
    """A product of bf16 takes a processor that has one."""
    dtype = request.node.callspec.params.get("dtype")
    if dtype == torch.bfloat16 and not torch.ops.fgrl.prefers_matmul(dtype):
        pytest.skip("this instruction set has no product of bf16")


# Rows, depth, columns: one number; below a tile of 8 x 48; tiles and one more; more rows than are packed side by side;
# around the depth of a block, 192 numbers or 288 pairs, and several; more rows or columns than a block of 512 x 768.
SIZES = [(1, 1, 1), (3, 5, 7), (8, 2, 48), (9, 3, 49), (33, 31, 64), (16, 193, 96), (17, 575, 97), (20, 1153, 50)]
SIZES += [(16, 577, 96), (515, 33, 20), (5, 6, 801)]


def embed(matrix: Tensor, layout: str) -> Tensor:
    """`matrix` in a layout, in the middle of NaN: nothing beside it may be read."""
    rows, columns = matrix.shape
    steps = {"rows": (1, 1), "columns": (1, 1), "neither": (2, 3)}[layout]
    shape = [size * step + 5 for size, step in zip((rows, columns), steps, strict=True)]
    buffer = torch.full(shape[::-1] if layout == "columns" else shape, float("nan"), dtype=matrix.dtype)
    buffer = buffer.T if layout == "columns" else buffer
    view = buffer[2 : 2 + rows * steps[0] : steps[0], 3 : 3 + columns * steps[1] : steps[1]]
    view.copy_(matrix)
    return view


def draw(size: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows, depth, columns = size
    a, b = torch.randn(rows, depth).to(dtype), torch.randn(depth, columns).to(dtype)
    return a, b, torch.randn(rows, columns)


def assert_within_rounding(out: Tensor, a: Tensor, b: Tensor, start: Tensor | None = None) -> None:
    """A sum of n numbers is off by at most n roundings, each 2^-24 of the sum of their magnitudes, in any order.

    For n u < 1, with n / (1 - n u) in place of n: Higham, Accuracy and Stability of Numerical Algorithms, 3.1. Products
    of bf16 are exact in fp32, and those of fp32 take one rounding more where there is no FMA.
    """
    exact, magnitude = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    if start is not None:
        exact, magnitude = exact + start, magnitude + start.abs()
    n_u = (a.shape[1] + 2) * 2.0**-24
    assert ((out - exact).abs() <= n_u / (1 - n_u) * magnitude).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b_layout", ["rows", "columns", "neither"])
@pytest.mark.parametrize("a_layout", ["rows", "columns", "neither"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_exact_to_rounding(size: tuple[int, int, int], a_layout: str, b_layout: str, dtype: torch.dtype) -> None:
    a, b, start = draw(size, dtype)
    left, right = embed(a, a_layout), embed(b, b_layout)
    out = embed(torch.full_like(start, float("nan")), "rows")
    torch.ops.fgrl.matmul(left, right, False, out)
    assert_within_rounding(out, a, b)
    out = embed(start, "rows")
    torch.ops.fgrl.matmul(left, right, True, out)
    assert_within_rounding(out, a, b, start)
    if dtype == torch.bfloat16:
        rounded = embed(torch.full_like(a[:, :1] @ b[:1], float("nan")), "rows")
        torch.ops.fgrl.matmul(left, right, False, rounded)
        torch.ops.fgrl.matmul(left, right, False, out)
        assert torch.equal(rounded, out.bfloat16())
    out.fill_(float("nan"))
    assert out._base is not None
    assert out._base.isnan().all(), "something beside the result was written"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_again_and_on_any_number_of_threads(dtype: torch.dtype) -> None:
    a, b, start = draw((515, 1153, 801), dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            results.append(start.clone())
            torch.ops.fgrl.matmul(a, b, True, results[-1])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays_in_its_row(value: float, dtype: torch.dtype) -> None:
    """In the last one of an odd depth, whose other half is a 0 that must not meet it."""
    a, b, start = draw((20, 31, 50), dtype)
    a[9, 30] = value
    torch.ops.fgrl.matmul(a, b, False, start)
    rest = torch.arange(20) != 9
    assert_within_rounding(start[rest], a[rest], b)
    assert torch.equal(start[9].isnan(), (a[9].float() @ b.float()).isnan())
    assert not start[9].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_subnormal_bf16_counts_as_zero_or_what_it_is(dtype: torch.dtype) -> None:
    a = torch.full((8, 3), 2.0**-130).to(dtype)
    out = torch.empty(8, 8)
    torch.ops.fgrl.matmul(a, torch.ones(3, 8).bfloat16(), False, out)
    assert ((out >= 0) & (out <= 3 * 2.0**-130)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_what_is_multiplied_in_bf16(dtype: torch.dtype) -> None:
    half, single, double = (torch.empty(9, 9, dtype=kind) for kind in (dtype, torch.float32, torch.float64))
    assert Head(half, half, None).operands == Head(half, half, single[0]).operands == torch.bfloat16
    assert Head(half, single, None).operands == Head(single, half, None).operands == torch.float32
    assert Head(half.half(), half.half(), None).operands == Head(half.half(), half, None).operands == torch.float32
    assert Head(half, half, double[0]).operands == torch.float64
