"""`token_reward_head` in C++: widths at the edges of vectors, layouts, dtypes, threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from heads import DTYPES, draw, eager, results
from numerics import assert_as_accurate
from torch import Tensor

import fgrl
from fgrl import backend

pytestmark = [
    pytest.mark.skipif(
        backend.resolve("token_reward_head", torch.device("cpu")) != "cpp", reason="the C++ extension does not run here"
    ),
    pytest.mark.usefixtures("each_cpu_capability"),
]

# Around the widths of vectors (4, 8, 16 lanes, twice as many of 16-bit elements) and of model widths.
WIDTHS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 576, 1000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("width", "normed"),
    # A norm of one element leaves its sign, whose gradient is 0 but for eps: rounding is all one would compare.
    [(width, normed) for width in WIDTHS for normed in (False, True) if width > 1 or not normed],
    ids=lambda value: {False: "plain", True: "RMSNorm"}[value] if isinstance(value, bool) else str(value),
)
def test_as_accurate_as_pytorch(width: int, normed: bool, dtype: torch.dtype) -> None:
    """Rows that are no multiple of four, and heads around the four that are computed together."""
    for rows, heads in ((1, 1), (6, 1), (7, 4), (130, 5), (9, 32)):
        inputs, grad = draw(rows, width, heads, normed, dtype), torch.randn(rows, heads) / rows**0.5
        ours = results(fgrl.ops.token_reward_head, inputs, grad)
        plain = results(eager, inputs, grad)
        exact = results(eager, {name: tensor.double() for name, tensor in inputs.items()}, grad)
        for name, one, other, truth in zip(("rewards", *inputs), ours, plain, exact, strict=True):
            # Where there are few numbers, PyTorch's may all be right by luck; ours are rounded once all the same.
            rounding = 0.0 if name == "rewards" else float(truth.abs().max()) * torch.finfo(dtype).eps / 2
            message = f"{name} of {rows} rows, {heads} heads"
            assert_as_accurate(one, other, truth, eps=max(1e-6, rounding), message=message)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_is_rounded_as_pytorch_rounds(dtype: torch.dtype) -> None:
    """Without a norm the gradient of hidden is `g * w`: fp32 numbers of every exponent, ties, infinity and NaN."""
    bits = torch.randint(-(2**31), 2**31, (4096,), dtype=torch.int32)
    bits[::4] &= ~0x7FFF  # half way between two of bf16
    bits[1::4] &= ~0xFFF  # and of fp16
    grad = bits.view(torch.float32)
    hidden = torch.zeros(len(grad), 33, dtype=dtype, requires_grad=True)
    fgrl.ops.token_reward_head(hidden, torch.ones(33, dtype=dtype)).backward(
        grad.to(torch.promote_types(dtype, grad.dtype))
    )
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, grad[:, None].to(dtype).expand(-1, 33), rtol=0, atol=0, equal_nan=True)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows apart": lambda x: torch.cat([x, torch.full_like(x, float("nan"))], -1)[..., : x.shape[-1]],
    "rows among others": lambda x: torch.stack([x, torch.full_like(x, float("nan"))], 1)[:, 0],
    "batch and time swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "columns apart": lambda x: torch.stack([x, torch.full_like(x, float("nan"))], -1)[..., 0],
    "columns backwards": lambda x: x.flip(-1).contiguous().flip(-1),
    "one row for all": lambda x: x[:1, :1].expand_as(x),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_of_hidden_makes_no_difference(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    inputs, grad = draw(1, 40, 3, True, dtype), torch.randn(5, 7, 3)
    hidden = layout(torch.randn(5, 7, 40, dtype=dtype))
    found: list[list[Tensor]] = []
    for variant in (hidden, hidden.contiguous()):
        leaf = variant.detach().requires_grad_()
        rewards = fgrl.ops.token_reward_head(**inputs | {"hidden": leaf})
        rewards.backward(grad.to(rewards.dtype))
        assert leaf.grad is not None
        found.append([rewards.detach(), leaf.grad])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("other", ["weight", "bias", "norm_weight"])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16, torch.float64)], ids=str)
def test_weights_of_another_dtype_than_hidden(dtypes: tuple[torch.dtype, torch.dtype], other: str) -> None:
    inputs, grad = draw(9, 40, 3, True, dtypes[0]), torch.randn(9, 3)
    inputs[other] = inputs[other].to(dtypes[1]) + 1e-5
    ours = results(fgrl.ops.token_reward_head, inputs, grad)
    with fgrl.use_backend("reference"):
        plain = results(fgrl.ops.token_reward_head, inputs, grad)
    for one, expected in zip(ours, plain, strict=True):
        assert one.dtype == expected.dtype
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("heads", [1, 6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_on_any_number_of_threads_and_in_any_batch(dtype: torch.dtype, heads: int) -> None:
    inputs, grad = draw(3001, 96, heads, True, dtype), torch.randn(3001, heads)
    expected = results(fgrl.ops.token_reward_head, inputs, grad)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            for one, other in zip(results(fgrl.ops.token_reward_head, inputs, grad), expected, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)
    part = results(fgrl.ops.token_reward_head, inputs | {"hidden": inputs["hidden"][5:18]}, grad[5:18])
    for one, other in zip(part[:2], expected[:2], strict=True):
        assert torch.equal(one, other[5:18])


def test_a_call_with_shapes_that_do_not_fit_reads_nothing() -> None:
    hidden, weight = torch.randn(3, 8), torch.randn(9)
    arguments: tuple[Any, ...] = (None, None, 1e-6)
    with pytest.raises(RuntimeError, match="fitting shapes"):
        torch.ops.fgrl.token_reward_head(hidden, weight, *arguments)
    with pytest.raises(RuntimeError, match="32 heads"):
        torch.ops.fgrl.token_reward_head(hidden, torch.randn(33, 8), *arguments)
