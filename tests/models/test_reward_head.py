"""`TokenRewardHead`: the op with parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fgrl


@pytest.mark.parametrize("norm_eps", [None, 1e-5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_rewards", [None, 1, 3])
def test_computes_the_op_of_its_parameters(num_rewards: int | None, bias: bool, norm_eps: float | None) -> None:
    head = fgrl.TokenRewardHead(8, num_rewards, bias=bias, norm_eps=norm_eps)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    rewards = head(hidden)
    assert rewards.shape == ((2, 5) if num_rewards is None else (2, 5, num_rewards))
    options: dict[str, Any] = {} if norm_eps is None else {"norm_weight": head.norm_weight, "norm_eps": norm_eps}
    assert torch.equal(rewards, fgrl.ops.token_reward_head(hidden, head.weight, head.bias, **options))
    rewards.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in (hidden, *head.parameters()))
    assert {name for name, _ in head.named_parameters()} == {
        "weight",
        *(["bias"] if bias else []),
        *(["norm_weight"] if norm_eps else []),
    }


def test_a_new_head_gives_0_and_learns() -> None:
    head = fgrl.TokenRewardHead(8, norm_eps=1e-6, dtype=torch.bfloat16)
    rewards = head(torch.randn(3, 8, dtype=torch.bfloat16))
    assert rewards.dtype == torch.float32
    assert not rewards.any()
    rewards.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.any()


def test_state_and_representation() -> None:
    head = fgrl.TokenRewardHead(4, 2, norm_eps=1e-6)
    torch.nn.init.normal_(head.weight)
    other = fgrl.TokenRewardHead(4, 2, norm_eps=1e-6)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.weight, head.weight)
    assert repr(head) == "TokenRewardHead(hidden_size=4, num_rewards=2, bias=True, norm_eps=1e-06)"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hidden_size", {"hidden_size": 0}),
        ("num_rewards", {"hidden_size": 4, "num_rewards": 0}),
        ("norm_eps", {"hidden_size": 4, "norm_eps": float("nan")}),
    ],
    ids=str,
)
def test_bad_sizes(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*; it must be greater than 0$"):
        fgrl.TokenRewardHead(**arguments)
