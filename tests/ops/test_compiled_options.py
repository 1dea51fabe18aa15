"""Options that change from step to step, such as a global token count: torch.compile makes symbols of such numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fgrl
from fgrl.ops import PPOLossConfig

STEPS = (0.5, 0.25, 0.75)


def every_coefficient(x: Tensor, number: float) -> Tensor:
    config = PPOLossConfig(
        clip_low=number,
        clip_high=number,
        dual_clip=1 + number,
        kl_coef=number,
        entropy_coef=number,
        importance_cap=number,
    )
    options = {"ref_logprobs": x - 1, "entropy": x, "rollout_logprobs": x + 1}
    return fgrl.ops.ppo_loss(x, x / 2, x, config=config, **options).loss


FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "gae": lambda x, number: fgrl.ops.gae(x, x, gamma=number, lam=number).advantages,
    "token_advantages": lambda x, number: (
        fgrl.ops.token_advantages(x, x, x, x - 1, kl_coef=number, reward_scale=number, reward_clip=number).advantages
    ),
    "group_advantages": lambda x, number: fgrl.ops.group_advantages(
        x[:, 0], (x[:, 1] > 0).long(), token_rewards=x, gamma=number, min_temperature=number
    ),
    "ppo_loss": lambda x, number: fgrl.ops.ppo_loss(x, x / 2, x, normalizer=number).loss,
    "ppo_loss's config": every_coefficient,
    "value_loss": lambda x, number: fgrl.ops.value_loss(x, x / 2, x + 1, clip=number, normalizer=number).loss,
    "edit_preference_loss": lambda x, number: (
        fgrl.ops.edit_preference_loss(x, -x, x > 0, x < 0, unchanged_weight=number, margin=number).loss
    ),
    "token_reward_head": lambda x, number: fgrl.ops.token_reward_head(x, x[0], norm_weight=x[1], norm_eps=number),
    "linear_logprobs": lambda x, number: fgrl.ops.linear_logprobs(
        x, x, (x[:, 0] > 0).long(), temperature=number, softcap=number
    ),
    "linear_ppo_loss": lambda x, number: (
        fgrl.ops.linear_ppo_loss(x, x, (x[:, 0] > 0).long(), None, x[:, 0], normalizer=number).loss
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_number_that_changes_between_calls_compiles(function: Callable[[Tensor, float], Tensor]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 5)
    for number in STEPS:
        torch.testing.assert_close(compiled(x, number), function(x, number))
