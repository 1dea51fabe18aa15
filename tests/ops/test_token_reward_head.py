"""`token_reward_head`: a dot product per token, optionally behind the final RMSNorm."""

from __future__ import annotations

import oracles
import pytest
import torch
from numerics import assert_as_accurate, assert_equals_oracle, gradients

import fgrl

# One token of width 1; odd; a batch; more widths than a power of two.
LEADING = {"[]": (), "[1]": (1,), "[3]": (3,), "[2, 5]": (2, 5), "[0]": (0,)}


def draw(leading: tuple[int, ...], width: int, heads: int | None, dtype: torch.dtype = torch.float64):
    head_shape = (width,) if heads is None else (heads, width)
    return {
        "hidden": torch.randn(*leading, width, dtype=dtype),
        "weight": torch.randn(head_shape, dtype=dtype),
        "bias": torch.randn(() if heads is None else (heads,), dtype=dtype),
        "norm_weight": torch.randn(width, dtype=dtype),
    }


@pytest.mark.parametrize("optional", [(), ("bias",), ("norm_weight",), ("bias", "norm_weight")], ids=str)
@pytest.mark.parametrize("heads", [None, 1, 3], ids=str)
@pytest.mark.parametrize("width", [1, 33])
@pytest.mark.parametrize("leading", LEADING.values(), ids=LEADING)
def test_equals_the_oracle(leading: tuple[int, ...], width: int, heads: int | None, optional: tuple[str, ...]) -> None:
    inputs = {
        name: tensor for name, tensor in draw(leading, width, heads).items() if name in ("hidden", "weight", *optional)
    }
    rewards = fgrl.ops.token_reward_head(**inputs, norm_eps=1e-3)
    expected = oracles.token_reward_head(
        inputs["hidden"].reshape(-1, width).numpy(),
        inputs["weight"].reshape(-1, width).numpy(),
        oracles.flat(inputs.get("bias")),
        oracles.flat(inputs.get("norm_weight")),
        eps=1e-3,
    )
    assert rewards.shape == (leading if heads is None else (*leading, heads))
    assert_equals_oracle(rewards, expected)


def test_a_bias_of_one_element() -> None:
    hidden, weight = torch.randn(2, 3), torch.randn(3)
    torch.testing.assert_close(fgrl.ops.token_reward_head(hidden, weight, torch.tensor([2.0])), hidden @ weight + 2.0)


def test_the_default_eps_is_1e_6() -> None:
    hidden = torch.full((1, 4), 1e-3, dtype=torch.float64)
    ones = torch.ones(4, dtype=torch.float64)
    assert float(fgrl.ops.token_reward_head(hidden, ones, norm_weight=ones)) == pytest.approx(4e-3 / (2e-6) ** 0.5)


@pytest.mark.parametrize("heads", [None, 2], ids=str)
def test_gradients_in_float64(heads: int | None) -> None:
    inputs = draw((2, 3), 5, heads)
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias, norm_weight: fgrl.ops.token_reward_head(
            hidden, weight, bias, norm_weight=norm_weight
        ),
        [tensor.requires_grad_() for tensor in inputs.values()],
    )


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "RMSNorm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs(dtype: torch.dtype, normed: bool) -> None:
    inputs = draw((3, 17), 576, None, dtype)
    if not normed:
        del inputs["norm_weight"]
    probe = torch.randn(3, 17)

    def ours(**leaves: torch.Tensor) -> torch.Tensor:
        rewards = fgrl.ops.token_reward_head(**leaves)
        assert rewards.dtype in (torch.float32, torch.float64)
        return (rewards * probe.to(rewards.dtype)).sum()

    def eager(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, norm_weight=None) -> torch.Tensor:
        if norm_weight is not None:
            hidden = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6) * norm_weight
        return ((hidden @ weight + bias) * probe.to(dtype)).sum()

    mine, baseline = gradients(ours, inputs), gradients(eager, inputs)
    exact = gradients(ours, {name: tensor.double() for name, tensor in inputs.items()})
    assert_as_accurate(mine[0], baseline[0], exact[0], eps=1e-4, message="rewards")
    for name in inputs:
        assert mine[1][name].dtype == dtype
        assert_as_accurate(mine[1][name], baseline[1][name], exact[1][name], eps=1e-4, message=name)


def test_rewards_are_not_rounded_to_the_dtype_of_the_input() -> None:
    hidden, weight = torch.ones(1, 2, dtype=torch.bfloat16), torch.tensor([256.0, 1.0], dtype=torch.bfloat16)
    assert fgrl.ops.token_reward_head(hidden, weight).tolist() == [257.0]  # bf16 has no 257


def test_strided_rows() -> None:
    wide = torch.randn(4, 2, 16, dtype=torch.float64)
    weight = torch.randn(8, dtype=torch.float64)
    torch.testing.assert_close(
        fgrl.ops.token_reward_head(wide[:, 1, ::2], weight),
        fgrl.ops.token_reward_head(wide[:, 1, ::2].contiguous(), weight),
    )


def test_an_oracle_by_central_differences() -> None:
    inputs = {name: tensor.double() for name, tensor in draw((2,), 3, None).items()}
    slopes = gradients(lambda **leaves: fgrl.ops.token_reward_head(**leaves).sin().sum(), inputs)[1]

    def total(point, name: str) -> float:
        now = inputs | {name: torch.as_tensor(point).reshape(inputs[name].shape)}
        rewards = oracles.token_reward_head(
            now["hidden"].numpy(),
            now["weight"].reshape(1, -1).numpy(),
            oracles.flat(now["bias"]),
            oracles.flat(now["norm_weight"]),
        )
        return float(torch.as_tensor(rewards).sin().sum())

    for name in inputs:
        expected = oracles.central_difference(lambda point, name=name: total(point, name), oracles.flat(inputs[name]))
        torch.testing.assert_close(slopes[name].reshape(-1), torch.as_tensor(expected), rtol=1e-6, atol=1e-8)
