"""Losses, advantages and rewards against OpenRLHF's own on random batches, and how they get into its workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openrlhf.models.utils as utils
import openrlhf.trainer.ppo_utils.experience_maker as maker
import pytest
import torch
from openrlhf.models import PolicyLoss, ValueLoss
from openrlhf.trainer.ppo_utils.experience import Experience
from torch import Tensor

import fgrl.integrations.openrlhf as adapter

ROWS, WIDTH = 6, 37
GLOBAL = {"dp_size": 2, "batch_num_tokens": 301.0, "global_batch_size": 20.0}


def make_mask(kind: str) -> Tensor:
    """Actions after prompts of several lengths, or these with the holes that an environment's answers are."""
    start, length = torch.randint(0, 9, (ROWS, 1)), torch.randint(2, WIDTH - 9, (ROWS, 1))
    positions = torch.arange(WIDTH)
    mask = (positions >= start) & (positions < start + length)
    if kind == "holes":
        mask &= (torch.rand(ROWS, WIDTH) > 0.3) | (positions == start)
    return mask


def both(call: Any) -> tuple[Any, Any]:
    """What `call` gives by OpenRLHF alone and with the replacements."""
    expected = call()
    with adapter.patch():
        return call(), expected


def assert_near(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["contiguous", "holes"])
@pytest.mark.parametrize("info", [{}, GLOBAL], ids=["local", "global"])
@pytest.mark.parametrize("token_level", [True, False])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("loss_type", ["ppo", "gspo"])
def test_policy_loss(
    loss_type: str, dual_clip: float | None, token_level: bool, info: dict[str, Any], kind: str
) -> None:
    mask, logprobs, advantages = make_mask(kind), torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    old = logprobs + 0.5 * torch.randn(ROWS, WIDTH)
    function = PolicyLoss(0.15, 0.28, dual_clip=dual_clip, token_level_loss=token_level, policy_loss_type=loss_type)

    def call() -> tuple[Any, ...]:
        leaf = logprobs.clone().requires_grad_()
        loss, *metrics = function(leaf, old, advantages, action_mask=mask, **info)
        loss.backward()
        return loss.detach(), leaf.grad, *metrics

    found, expected = both(call)
    assert_near(found, expected)
    assert found[2] > 0 or loss_type == "gspo"


@pytest.mark.parametrize("level", ["token", "seq"])
def test_the_losses_with_a_correction_stay_openrlhfs(level: str) -> None:
    mask, (logprobs, old, rollout, advantages) = make_mask("contiguous"), torch.randn(4, ROWS, WIDTH)
    function = PolicyLoss(is_correction_level=level)
    found, expected = both(lambda: function(logprobs, old, advantages, action_mask=mask, rollout_log_probs=rollout))
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


def test_a_policy_loss_that_openrlhf_has_not_is_its_error() -> None:
    with adapter.patch(), pytest.raises(ValueError, match="Invalid policy loss type: cispo"):
        PolicyLoss(policy_loss_type="cispo")(*torch.zeros(3, 1, 2), action_mask=torch.ones(1, 2))


def test_kl_is_not_clamped() -> None:
    """OpenRLHF clamps the log-ratio in the loss at 20, and not in its metric."""
    logprobs, old = torch.tensor([[0.0, -30.0]]), torch.zeros(1, 2)
    mask, advantages = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2)
    found, expected = both(lambda: PolicyLoss()(logprobs, old, advantages, action_mask=mask))
    assert_near(found, expected)
    assert found[2] == 15.0


def test_a_nan_under_the_mask_stays_there() -> None:
    logprobs, mask = torch.tensor([[0.0, torch.nan]]), torch.tensor([[True, False]])
    found, expected = both(lambda: PolicyLoss()(logprobs, torch.zeros(1, 2), torch.ones(1, 2), action_mask=mask)[0])
    assert found == -1.0
    assert expected.isnan()


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("info", [{}, GLOBAL], ids=["local", "global"])
@pytest.mark.parametrize("token_level", [True, False])
def test_value_loss(token_level: bool, info: dict[str, Any], clip: float | None) -> None:
    mask, values, returns = make_mask("holes"), torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    old = values + 0.5 * torch.randn(ROWS, WIDTH)

    def call() -> tuple[Tensor, ...]:
        leaf = values.clone().requires_grad_()
        loss = ValueLoss(clip, token_level)(leaf, old, returns, action_mask=mask, **info)
        loss.backward()
        return loss.detach(), leaf.grad

    assert_near(*both(call))


def experience_maker(**options: Any) -> Any:
    made = object.__new__(maker.RemoteExperienceMaker)
    made.advantage_estimator = options.get("estimator", "gae")
    made.kl_ctl = SimpleNamespace(value=0.1)
    advantage = SimpleNamespace(estimator=made.advantage_estimator, gamma=1.0, lambd=0.95, no_std_norm=False)
    made.strategy = SimpleNamespace(
        args=SimpleNamespace(
            rollout=SimpleNamespace(n_samples_per_prompt=1),
            algo=SimpleNamespace(advantage=advantage),
            reward=SimpleNamespace(clip_range=(-10.0, 10.0), overlong_buffer_len=None, stop_properly_penalty_coef=None),
        )
    )
    return made


def test_advantages() -> None:
    mask, values, rewards = make_mask("contiguous"), torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    made = experience_maker()
    found, expected = both(lambda: made.get_advantages_and_returns(values, rewards, mask, 0.98, 0.9))
    for mine, other in zip(found, expected, strict=True):
        assert_near(mine[mask], other[mask])


def test_a_hole_is_skipped() -> None:
    """OpenRLHF takes an environment's answer for a state with the value 0; by hand with gamma and lambda 1."""
    mask, values = torch.tensor([[True, False, True]]), torch.tensor([[0.5, 9.0, 0.25]])
    made, rewards = experience_maker(), torch.tensor([[0.0, 0.0, 1.0]])
    found, expected = both(lambda: made.get_advantages_and_returns(values, rewards, mask, 0.5, 1.0)[0])
    assert found.tolist() == [[0.0, 0.0, 0.75]]
    assert expected[0, 0] == pytest.approx(-0.25)  # 0.25 * 1 - 0.5: the hole is one step more of the discount


@pytest.mark.parametrize("clip", [None, (-0.5, 0.5)])
def test_reward_of_a_response(clip: tuple[float, float] | None) -> None:
    reward, kl, mask = torch.randn(ROWS), torch.randn(ROWS, WIDTH), make_mask("holes")
    found, expected = both(lambda: maker.compute_reward(reward, 0.1, kl, mask, clip))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("clip", [None, (-0.5, 0.5)])
def test_reward_of_each_token(clip: tuple[float, float] | None) -> None:
    reward, kl, mask = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH), make_mask("holes")
    with adapter.patch():
        assert maker.compute_reward is utils.compute_reward
        found = maker.compute_reward(reward, 0.1, kl, mask, clip)
    expected = reward.clamp(*clip) if clip else reward
    assert_near(found[mask], (expected - 0.1 * kl)[mask])


def experiences(token_rewards: list[Tensor] | None) -> list[Any]:
    mask, kl = torch.tensor([[0, 1, 1, 0, 1]]).bool(), torch.zeros(1, 5)
    return [
        Experience(
            action_mask=mask,
            kl=kl.clone(),
            values=torch.zeros(1, 5),
            rewards=torch.tensor([float(row)]),
            index=[row],
            info={} if token_rewards is None else {"token_rewards": token_rewards[row]},
        )
        for row in range(2)
    ]


def test_token_rewards_of_extra_logs() -> None:
    """They reach the returns at their actions, over the hole, and leave the metrics."""
    made = experience_maker()
    made.strategy.args.algo.advantage.lambd = 1.0
    rewards = [torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 0.0, 0.0]])]
    with adapter.patch():
        found = made.compute_advantages_and_returns(experiences(rewards))
    assert found[0].returns.tolist() == [[0.0, 7.0, 6.0, 0.0, 4.0]]
    assert found[1].returns.tolist() == [[0.0, 1.5, 1.0, 0.0, 1.0]]
    assert found[0].info["return"].item() == 7.0
    assert "token_rewards" not in found[0].info


def test_without_token_rewards_nothing_changes() -> None:
    made = experience_maker()
    found, expected = both(lambda: made.compute_advantages_and_returns(experiences(None)))
    mask = found[0].action_mask
    for mine, other in zip(found, expected, strict=True):
        assert_near(mine.returns[mask][-1:], other.returns[mask][-1:])


def test_too_few_token_rewards_are_refused() -> None:
    with (
        adapter.patch(),
        pytest.raises(ValueError, match=r"token_rewards has shape \[1, 2\]; it must have one number for each of the 3"),
    ):
        experience_maker().compute_advantages_and_returns(experiences([torch.ones(1, 2)] * 2))


def test_undo() -> None:
    before = PolicyLoss.forward, ValueLoss.forward, maker.compute_reward, utils.compute_reward
    patch = adapter.patch()
    assert PolicyLoss.forward is not before[0]
    patch.undo()
    assert (PolicyLoss.forward, ValueLoss.forward, maker.compute_reward, utils.compute_reward) == before
    assert maker.RemoteExperienceMaker.get_advantages_and_returns.__module__ == maker.__name__


def test_workers_of_ray_patch_what_they_import(tmp_path: Path) -> None:
    """The hook that the launcher gives to Ray, in a worker of a real Ray; OpenRLHF is imported there, later."""
    script = tmp_path / "driver.py"
    script.write_text(
        "import ray\n"
        "@ray.remote\n"
        "def worker():\n"
        f"    import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import conftest\n"
        "    before = [name for name in sys.modules if name.startswith('openrlhf')]\n"
        "    import openrlhf.trainer.ppo_utils.experience_maker as maker\n"
        "    from openrlhf.models import PolicyLoss, ValueLoss\n"
        "    places = (PolicyLoss.forward, ValueLoss.forward, maker.compute_reward,\n"
        "              maker.RemoteExperienceMaker.get_advantages_and_returns)\n"
        "    return before, [place.__module__ for place in places]\n"
        "hook = 'fgrl.integrations.openrlhf.patch_on_import'\n"
        "ray.init(num_cpus=1, include_dashboard=False, runtime_env={'worker_process_setup_hook': hook})\n"
        "print(ray.get(worker.remote()))\n"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().splitlines()[-1] == str(([], ["fgrl.integrations.openrlhf"] * 4))
