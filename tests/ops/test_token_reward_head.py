"""`token_reward_head`: a dot product per token, optionally behind the final RMSNorm."""

from __future__ import annotations

import itertools

import oracles
import pytest
import torch
from numerics import assert_as_accurate, assert_equals_oracle, gradients

import fgrl
from fgrl import backend

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


NAMES = ("hidden", "weight", "bias", "norm_weight")


@pytest.mark.parametrize("frozen", [*itertools.chain(*(itertools.combinations(NAMES, k) for k in range(4)))], ids=str)
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "RMSNorm"])
def test_only_gradients_that_are_needed(frozen: tuple[str, ...], normed: bool) -> None:
    """A frozen head or backbone gets none, and the others the same to the bit."""
    inputs = draw((7,), 33, 2, torch.float32)
    if not normed:
        del inputs["norm_weight"]
    if inputs.keys() <= set(frozen):
        return

    def grads(frozen: tuple[str, ...]) -> dict[str, torch.Tensor | None]:
        leaves = {name: tensor.clone().requires_grad_(name not in frozen) for name, tensor in inputs.items()}
        fgrl.ops.token_reward_head(**leaves).sin().sum().backward()
        return {name: tensor.grad for name, tensor in leaves.items()}

    every, some = grads(()), grads(frozen)
    for name in inputs:
        found, expected = some[name], every[name]
        if name in frozen:
            assert found is None
        else:
            assert found is not None
            assert expected is not None
            assert torch.equal(found, expected)


@pytest.mark.parametrize("optional", [(), ("bias",), ("bias", "norm_weight")], ids=str)
def test_more_heads_than_one_call_takes(optional: tuple[str, ...]) -> None:
    inputs = {name: tensor for name, tensor in draw((5,), 20, 70).items() if name in ("hidden", "weight", *optional)}
    outputs, grads = gradients(lambda **leaves: fgrl.ops.token_reward_head(**leaves).sin().sum(), inputs)
    with fgrl.use_backend("reference"):
        expected, expected_grads = gradients(lambda **leaves: fgrl.ops.token_reward_head(**leaves).sin().sum(), inputs)
    torch.testing.assert_close(outputs, expected)
    for name in inputs:
        torch.testing.assert_close(grads[name], expected_grads[name])


def test_what_is_not_finite_stays_in_its_row(each_backend: None) -> None:
    """And reaches the sums over rows even where the gradient of the reward is 0, as the docstring says."""
    inputs = draw((9,), 33, 2, torch.float32)
    expected = fgrl.ops.token_reward_head(**inputs)
    inputs["hidden"][4, 3] = float("nan")
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    rewards = fgrl.ops.token_reward_head(**leaves)
    others = [row for row in range(9) if row != 4]
    torch.testing.assert_close(rewards[others], expected[others], rtol=1e-6, atol=1e-6)
    assert rewards[4].isnan().all()
    grad = torch.ones(9, 2)
    grad[4] = 0
    rewards.backward(grad)
    grads = {name: tensor.grad for name, tensor in leaves.items()}
    assert grads["hidden"] is not None
    assert grads["hidden"][others].isfinite().all()
    assert grads["hidden"][4].isnan().all()
    assert grads["weight"] is not None
    assert grads["weight"].isnan().any()
    assert grads["bias"] is not None
    assert grads["bias"].tolist() == [8.0, 8.0]


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "RMSNorm"])
@pytest.mark.parametrize("heads", [None, 3], ids=str)
def test_the_operator_is_what_it_tells_pytorch(heads: int | None, normed: bool) -> None:
    if backend.resolve("token_reward_head", torch.device("cpu")) == "reference":
        pytest.skip("there is no operator to check")
    inputs = draw((4, 5), 8, heads, torch.bfloat16)
    tensors = [tensor.requires_grad_() for tensor in inputs.values()]
    if not normed:
        tensors[3] = None
    torch.library.opcheck(torch.ops.fgrl.token_reward_head.default, (*tensors, 1e-6))
    plain = [tensor if tensor is None else tensor.detach() for tensor in tensors]
    rewards, scores, rstd = torch.ops.fgrl.token_reward_head(*plain, 1e-6)
    arguments = (torch.randn_like(rewards), *plain, scores, rstd, True, True, True, normed)
    torch.library.opcheck(torch.ops.fgrl.token_reward_head_backward.default, arguments)


def test_strided_rows() -> None:
    wide = torch.randn(4, 2, 16, dtype=torch.float64)
    weight = torch.randn(8, dtype=torch.float64)
    torch.testing.assert_close(
        fgrl.ops.token_reward_head(wide[:, 1, ::2], weight),
        fgrl.ops.token_reward_head(wide[:, 1, ::2].contiguous(), weight),
    )


def test_an_oracle_by_central_differences() -> None:
    inputs = {name: tensor.double() for name, tensor in draw((2,), 3, None).items()}
    grads = gradients(lambda **leaves: fgrl.ops.token_reward_head(**leaves).sin().sum(), inputs)[1]

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
        torch.testing.assert_close(grads[name].reshape(-1), torch.as_tensor(expected), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "RMSNorm"])
def test_hidden_states_of_no_width_leave_the_bias(normed: bool, each_backend: None) -> None:
    inputs = {"hidden": torch.empty(3, 0), "weight": torch.empty(2, 0), "bias": torch.tensor([2.0, -1.0])}
    if normed:
        inputs["norm_weight"] = torch.empty(0)
    rewards, found = gradients(lambda **leaves: fgrl.ops.token_reward_head(**leaves).sum(), inputs)
    assert rewards == 3.0
    assert torch.equal(found["bias"], torch.tensor([3.0, 3.0]))
