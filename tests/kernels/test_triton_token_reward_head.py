"""The kernels of `token_reward_head`: heads of every path, widths around a block's edge, layouts, repeatability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from heads import DTYPES, draw, eager, results
from numerics import assert_as_accurate
from torch import Tensor

import fgrl

pytestmark = pytest.mark.usefixtures("on_triton")

LAUNCHERS = tuple(f"token_reward_head.token_reward_head{end}" for end in ("", "_backward"))
COLUMNS = 64


@pytest.fixture(autouse=True)
def small_blocks(launch_with: Any, request: Any) -> None:
    if not request.node.name.startswith("test_shipped"):
        launch_with(*LAUNCHERS, max_columns=COLUMNS)
        launch_with(LAUNCHERS[1], max_programs=132)


# One head; a few, summed up in registers; from five on a matrix product; no power of two; as many as there can be.
HEADS = (1, 3, 5, 19, 32)
# Less than a block, a block (of `COLUMNS` columns), one more, and several.
WIDTHS = (1, 33, 64, 65, 200)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "RMSNorm"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("heads", HEADS)
def test_as_accurate_as_pytorch(heads: int, width: int, normed: bool, dtype: torch.dtype, device: torch.device) -> None:
    """37 rows: several blocks, the last of which is not full, and programs of the backward pass with several each."""
    if normed and width == 1:
        pytest.skip("a norm of one element leaves its sign, whose gradient is 0 but for eps")
    assert_right(heads, width, normed, dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "RMSNorm"])
@pytest.mark.parametrize("heads", [1, 4, 5])
def test_shipped_blocks(heads: int, normed: bool, dtype: torch.dtype, device: torch.device) -> None:
    """One block of columns and a rest in the backward pass, several in the forward pass."""
    assert_right(heads, 1030, normed, dtype, device)


def assert_right(heads: int, width: int, normed: bool, dtype: torch.dtype, device: torch.device) -> None:
    inputs = draw(37, width, heads, normed, dtype, device)
    grad = torch.randn(37, heads, device=device) / 6
    ours = results(fgrl.ops.token_reward_head, inputs, grad)
    plain = results(eager, inputs, grad)
    exact = results(eager, {name: tensor.double() for name, tensor in inputs.items()}, grad)
    for name, one, other, truth in zip(("rewards", *inputs), ours, plain, exact, strict=True):
        # Where there are few numbers, PyTorch's may all be right by luck; ours are rounded once all the same.
        rounding = 0.0 if name == "rewards" else float(truth.abs().max()) * torch.finfo(dtype).eps / 2
        assert_as_accurate(one, other, truth, eps=max(1e-6, rounding), message=name)


@pytest.mark.parametrize("heads", [1, 5])
def test_many_rows_for_each_program(heads: int, device: torch.device) -> None:
    """More blocks of rows than programs, so that a program goes on to a next one."""
    inputs, grad = draw(700, 20, heads, True, torch.float32, device), torch.randn(700, heads, device=device) / 50
    ours = results(fgrl.ops.token_reward_head, inputs, grad)
    plain = results(eager, inputs, grad)
    exact = results(eager, {name: tensor.double() for name, tensor in inputs.items()}, grad)
    for name, one, other, truth in zip(("rewards", *inputs), ours, plain, exact, strict=True):
        assert_as_accurate(one, other, truth, message=name)
    for one, other in zip(results(fgrl.ops.token_reward_head, inputs, grad), ours, strict=True):
        assert torch.equal(one, other)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows apart": lambda x: torch.cat([x, torch.full_like(x, float("nan"))], -1)[..., : x.shape[-1]],
    "batch and time swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "columns apart": lambda x: torch.stack([x, torch.full_like(x, float("nan"))], -1)[..., 0],
    "one row for all": lambda x: x[:1, :1].expand_as(x),
}


@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_of_hidden_makes_no_difference(
    layout: Callable[[Tensor], Tensor], heads: int, device: torch.device
) -> None:
    inputs, grad = draw(1, 70, heads, True, torch.float32, device), torch.randn(3, 7, heads, device=device)
    hidden = layout(torch.randn(3, 7, 70, device=device))
    found: list[list[Tensor]] = []
    for variant in (hidden, hidden.contiguous()):
        leaf = variant.detach().requires_grad_()
        rewards = fgrl.ops.token_reward_head(**inputs | {"hidden": leaf})
        rewards.backward(grad)
        assert leaf.grad is not None
        found.append([rewards.detach(), leaf.grad])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("heads", [1, 5])
def test_what_is_not_finite_stays_in_its_row(heads: int, device: torch.device) -> None:
    inputs = draw(40, 70, heads, True, torch.float32, device)
    expected = fgrl.ops.token_reward_head(**inputs)
    inputs["hidden"][11, 3], inputs["hidden"][39, 69] = float("nan"), float("inf")
    rewards = fgrl.ops.token_reward_head(**inputs)
    clean = torch.ones(40, dtype=torch.bool, device=device)
    clean[[11, 39]] = False
    assert torch.equal(rewards[clean], expected[clean])
    assert not rewards[~clean].isfinite().any()


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("heads", [1, 5])
def test_weights_of_another_dtype_than_hidden(
    heads: int, dtypes: tuple[torch.dtype, torch.dtype], device: torch.device
) -> None:
    inputs, grad = draw(9, 40, heads, False, dtypes[0], device), torch.randn(9, heads, device=device)
    inputs["weight"] = inputs["weight"].to(dtypes[1])
    ours = results(fgrl.ops.token_reward_head, inputs, grad)
    with fgrl.use_backend("reference"):
        plain = results(fgrl.ops.token_reward_head, inputs, grad)
    for one, expected in zip(ours, plain, strict=True):
        assert one.dtype == expected.dtype
        torch.testing.assert_close(one, expected)
