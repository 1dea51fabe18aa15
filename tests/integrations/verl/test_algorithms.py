"""Advantages and losses against verl's own on random batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig, FSDPActorConfig

import fgrl.integrations.verl as adapter
from fgrl.integrations.verl import algorithms

MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"]


@pytest.fixture(scope="module")
def theirs() -> SimpleNamespace:
    """verl's own functions, taken while nothing is replaced."""
    adapter.undo()
    found = SimpleNamespace(
        gae=core_algos.compute_gae_advantage_return,
        value_loss=core_algos.compute_value_loss,
        policy_loss=core_algos.compute_policy_loss_vanilla,
        grpo=core_algos.compute_grpo_outcome_advantage,
    )
    adapter.apply()
    assert found.gae.__module__.startswith("verl.")
    assert found.value_loss.__module__.startswith("verl.")
    return found


class Batch(NamedTuple):
    logprobs: Tensor
    old: Tensor
    advantages: Tensor
    values: Tensor
    old_values: Tensor
    returns: Tensor
    rewards: Tensor
    mask: Tensor


def make_batch(kind: str, rows: int = 6, width: int = 37) -> Batch:
    """`kind` of mask: every token, responses of several lengths, or these with holes in the middle."""
    lengths = torch.randint(1, width + 1, (rows,)) if kind != "full" else torch.full((rows,), width)
    mask = torch.arange(width) < lengths[:, None]
    if kind == "holes":
        mask &= torch.rand(rows, width) > 0.3
        mask[0] = False  # a filler row, as verl pads batches with
        mask[1:, 0] = True
    draw = [torch.randn(rows, width) for _ in range(7)]
    draw[1] = draw[0] + 0.5 * draw[1]  # ratios on both sides of every bound
    draw[4] = draw[3] + 0.5 * draw[4]
    return Batch(*draw, mask)


def options(mode: str, **kwargs: Any) -> ActorConfig:
    return FSDPActorConfig(strategy="fsdp2", rollout_n=1, use_dynamic_bsz=True, loss_agg_mode=mode, **kwargs)


def global_info(kind: str, batch: Batch) -> dict[str, Any]:
    """What verl's workers put into `config.global_batch_info`."""
    if kind == "local":
        return {}
    tokens, sequences = int(batch.mask.sum()) * 3, 20
    return {"dp_size": 2, "batch_num_tokens": tokens, "global_batch_size": sequences, "loss_scale_factor": 11}


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.to(torch.float32), expected.to(torch.float32), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["full", "lengths", "holes"])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_gae(theirs: SimpleNamespace, kind: str, mask_dtype: torch.dtype) -> None:
    batch = make_batch(kind)
    their_mask = batch.mask.float() if mask_dtype == torch.bool else batch.mask.to(mask_dtype)  # theirs subtracts it
    expected = theirs.gae(batch.rewards, batch.values, their_mask, 0.98, 0.9)
    found = core_algos.compute_gae_advantage_return(
        token_level_rewards=batch.rewards,
        values=batch.values,
        response_mask=batch.mask.to(mask_dtype),
        gamma=0.98,
        lam=0.9,
    )
    for mine, other in zip(found, expected, strict=True):
        assert_near(mine[batch.mask], other[batch.mask])
        assert not mine[~batch.mask].any()
    assert core_algos.get_adv_estimator_fn("gae") is algorithms.gae


def test_a_nan_under_the_mask_stays_there(theirs: SimpleNamespace) -> None:
    batch = make_batch("holes")
    clean = algorithms.gae(batch.rewards, batch.values, batch.mask.long(), 1.0, 0.95)
    rewards, values = (torch.where(batch.mask, tensor, torch.nan) for tensor in (batch.rewards, batch.values))
    found = algorithms.gae(rewards, values, batch.mask.long(), 1.0, 0.95)
    assert all(torch.equal(mine, other) for mine, other in zip(found, clean, strict=True))
    assert theirs.gae(rewards, values, batch.mask.long(), 1.0, 0.95)[0][batch.mask].isnan().any()


@pytest.mark.parametrize("kind", ["full", "lengths", "holes"])
@pytest.mark.parametrize("info", ["local", "global"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "rollout weights"])
@pytest.mark.parametrize("mode", MODES)
def test_policy_loss(theirs: SimpleNamespace, mode: str, weighted: bool, info: str, kind: str) -> None:
    batch = make_batch(kind)
    config = options(mode, clip_ratio=0.2, clip_ratio_low=0.15, clip_ratio_high=0.28, clip_ratio_c=1.5)
    config.global_batch_info.update(global_info(info, batch))
    weights = torch.rand(batch.mask.shape) * 2 if weighted else None
    results = []
    for function in (theirs.policy_loss, core_algos.get_policy_loss_fn("fgrl")):
        logprobs = batch.logprobs.clone().requires_grad_()
        loss, metrics = function(
            old_log_prob=batch.old,
            log_prob=logprobs,
            advantages=batch.advantages,
            response_mask=batch.mask,
            loss_agg_mode=mode,
            config=config,
            rollout_is_weights=weights,
        )
        loss.backward()
        results.append((loss.detach(), logprobs.grad, metrics))
    (expected, expected_grad, expected_metrics), (found, found_grad, found_metrics) = results
    assert_near(found, expected)
    assert_near(found_grad, expected_grad)
    assert found_metrics == pytest.approx(expected_metrics, rel=1e-5, abs=1e-6)
    assert all(type(value) is float for value in found_metrics.values())
    assert found_metrics["actor/pg_clipfrac"] > 0
    assert found_metrics["actor/pg_clipfrac_lower"] > 0


@pytest.mark.parametrize("kind", ["full", "lengths", "holes"])
@pytest.mark.parametrize("info", ["local", "global"])
@pytest.mark.parametrize("mode", MODES)
def test_value_loss(theirs: SimpleNamespace, mode: str, info: str, kind: str) -> None:
    import verl.workers.utils.losses as worker_losses

    batch, results = make_batch(kind), []
    assert worker_losses.compute_value_loss is core_algos.compute_value_loss
    for function in (theirs.value_loss, worker_losses.compute_value_loss):
        values = batch.values.clone().requires_grad_()
        loss, clipped = function(
            vpreds=values,
            values=batch.old_values,
            returns=batch.returns,
            response_mask=batch.mask,
            cliprange_value=0.3,
            loss_agg_mode=mode,
            **global_info(info, batch),
        )
        loss.backward()
        results.append((loss.detach(), values.grad, clipped))
    for mine, other in zip(*reversed(results), strict=True):
        assert_near(mine, other)
    assert results[1][2] > 0


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"])
def test_processes_without_the_global_count_are_refused(theirs: SimpleNamespace, mode: str) -> None:
    batch = make_batch("lengths")
    arguments = (batch.values, batch.returns, batch.old_values, batch.mask, 0.3, mode, 2)
    for function in (theirs.value_loss, core_algos.compute_value_loss):
        with pytest.raises(ValueError, match=r"batch_num_tokens|global_batch_size"):
            function(*arguments)


def test_an_unknown_aggregation_is_refused() -> None:
    batch = make_batch("lengths")
    with pytest.raises(ValueError, match=r"loss_agg_mode is 'mean'; it must be one of token-mean, "):
        algorithms.value_loss(batch.values, batch.returns, batch.old_values, batch.mask, 0.3, "mean")


class TestGroupAdvantages:
    """Twelve responses of four prompts."""

    index = np.array(["a", "b", "a", "c", "b", "a", "c", "a", "b", "d", "c", "c"], dtype=object)

    def outcome_rewards(self, mask: Tensor) -> Tensor:
        rewards = torch.zeros(mask.shape)
        last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
        rewards[torch.arange(len(mask)), last] = torch.randn(len(mask))
        return rewards

    @pytest.mark.parametrize("scaled", [True, False])
    @pytest.mark.parametrize("kind", ["full", "lengths"])
    def test_outcomes_alone_are_grpo(self, theirs: SimpleNamespace, kind: str, scaled: bool) -> None:
        mask = make_batch(kind, rows=12).mask
        rewards = self.outcome_rewards(mask)
        config = AlgoConfig(norm_adv_by_std_in_grpo=scaled)
        estimator = core_algos.get_adv_estimator_fn("fgrl")
        found, _ = estimator(token_level_rewards=rewards, response_mask=mask.long(), index=self.index, config=config)
        expected, _ = theirs.grpo(rewards, mask.long(), self.index, norm_adv_by_std_in_grpo=scaled)
        several = torch.from_numpy(self.index != "d")  # verl leaves the reward of a lonely response as it is
        assert_near(found[several], expected[several])
        assert not found[~several].any()

    def test_token_rewards_are_added(self) -> None:
        """By hand: outcomes 1 and 0; token rewards 3, 1 and 2 have the mean 2, and are summed from each token on."""
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        rewards = torch.tensor([[3.0, 1.0, 1.0], [2.0, 0.0, 7.0]])
        config = AlgoConfig(norm_adv_by_std_in_grpo=False, gamma=1.0)
        index = np.array(["p", "p"], dtype=object)
        found, returns = algorithms.outcome_and_token_advantages(rewards, mask, index=index, config=config)
        mean = 6.0 / 5  # of 3, 1, 0 and 2, 0: the last tokens have no token reward
        first = [3 + 1 - 3 * mean, 1 - 2 * mean, -mean]
        second = [2 - 2 * mean, -mean]
        expected = torch.tensor([[0.5 + x for x in first], [*(-0.5 + x for x in second), 0.0]])
        assert_near(found, expected)
        assert returns is found

    def test_token_rewards_alone(self) -> None:
        mask = torch.tensor([[1, 1], [1, 0]])
        rewards, index = torch.tensor([[3.0, 1.0], [2.0, 9.0]]), np.array(["p", "p"], dtype=object)
        config = AlgoConfig(norm_adv_by_std_in_grpo=False, gamma=0.5)
        estimator = core_algos.get_adv_estimator_fn("fgrl_tokens")
        found, _ = estimator(token_level_rewards=rewards, response_mask=mask, index=index, config=config)
        assert_near(found, torch.tensor([[1 - 0.5, -1.0], [0.0, 0.0]]))

    def test_groups_are_needed(self) -> None:
        with pytest.raises(ValueError, match="index is None; it must have one entry a response"):
            algorithms.token_advantages(torch.zeros(1, 2), torch.ones(1, 2))


def test_undo_puts_everything_back(theirs: SimpleNamespace) -> None:
    import verl.utils.experimental.torch_functional as fused_heads
    import verl.workers.utils.losses as worker_losses

    adapter.undo()
    try:
        assert core_algos.compute_gae_advantage_return is theirs.gae
        assert core_algos.ADV_ESTIMATOR_REGISTRY["gae"] is theirs.gae
        assert core_algos.compute_value_loss is theirs.value_loss
        assert worker_losses.compute_value_loss is theirs.value_loss
        assert fused_heads.FusedLinearForPPO.__module__ == fused_heads.__name__
        assert not {"fgrl", "fgrl_tokens"} & set(core_algos.ADV_ESTIMATOR_REGISTRY)
        assert "fgrl" not in core_algos.POLICY_LOSS_REGISTRY
    finally:
        adapter.apply()
    assert core_algos.compute_value_loss is algorithms.value_loss


def test_no_other_module_of_verl_holds_what_is_replaced(theirs: SimpleNamespace) -> None:
    """A name imported before the replacement would go on calling verl's function."""
    import sys

    held = [
        f"{name}.{attribute}"
        for name, module in list(sys.modules.items())
        if name.startswith("verl.")
        for attribute, value in list(vars(module).items())
        if value is theirs.gae or value is theirs.value_loss
    ]
    assert held == []
