"""Peers' formulas, restated: we agree where they are right, and the tests show where they are not.

Read from verl 0.9.1 (`trainer/ppo/core_algos.py`, `utils/torch_functional.py`), OpenRLHF 0.11.2 (`models/loss.py`,
`models/utils.py`, `trainer/ppo_utils/experience_maker.py`) and TRL 1.16 (`trainer/grpo_trainer.py`,
`trainer/rloo_trainer.py`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from numerics import gradients, make_mask

import fgrl
from fgrl.ops import PPOLossConfig
from fgrl.reference.ppo_loss import kl_value

NAN = float("nan")


def verl_gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Carries the state over holes, but by arithmetic with the mask, and writes results at masked positions."""
    following, carried, columns = torch.zeros(len(rewards)), torch.zeros(len(rewards)), []
    for t in range(rewards.shape[1] - 1, -1, -1):
        fresh = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * carried
        following = mask[:, t] * values[:, t] + (1 - mask[:, t]) * following
        carried = mask[:, t] * fresh + (1 - mask[:, t]) * carried
        columns.insert(0, carried)
    advantages = torch.stack(columns, 1)
    return advantages, advantages + values


def openrlhf_gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Zeroes the masked rewards and values, and runs on as if the masked tokens were there."""
    rewards, values = rewards * mask, values * mask
    after = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], 1)
    deltas, carried, columns = rewards + gamma * after - values, torch.zeros(len(values)), []
    for t in range(rewards.shape[1] - 1, -1, -1):
        carried = deltas[:, t] + gamma * lam * carried
        columns.insert(0, carried)
    advantages = torch.stack(columns, 1)
    return advantages, advantages + values


def verl_masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask.bool(), values, 0.0).sum() / (mask.sum() + 1e-8)


def verl_whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mean = verl_masked_mean(values, mask)
    variance = verl_masked_mean((values - mean) ** 2, mask) * mask.sum() / (mask.sum() - 1)
    return (values - mean) * torch.rsqrt(variance + 1e-8)


def surrogate(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    low: float,
    high: float,
    dual_clip: float,
) -> torch.Tensor:
    """The per-token policy loss on which verl, OpenRLHF and TRL (with `delta`) agree."""
    ratio = torch.exp((logprobs - old).clamp(-20, 20))
    loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
    return torch.where(advantages < 0, torch.min(loss, -advantages * dual_clip), loss)


def draw(shape: tuple[int, int] = (4, 9)) -> dict[str, torch.Tensor]:
    logprobs = -torch.rand(shape) * 3
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + 0.5 * torch.randn(shape),
        "advantages": torch.randn(shape),
        "ref_logprobs": logprobs + 0.5 * torch.randn(shape),
    }


class TestGAE:
    @pytest.mark.parametrize("kind", ["full", "tails", "holes"])
    def test_verl_is_right_about_holes_when_what_they_hold_is_finite(self, kind: str) -> None:
        rewards, values, mask = torch.randn(3, 9), torch.randn(3, 9), make_mask(kind, (3, 9))
        assert mask is not None
        ours = fgrl.ops.gae(rewards, values, mask, gamma=0.97, lam=0.9)
        theirs = verl_gae(rewards, values, mask.float(), 0.97, 0.9)
        torch.testing.assert_close(ours.advantages[mask], theirs[0][mask])
        torch.testing.assert_close(ours.returns[mask], theirs[1][mask])

    def test_verl_spreads_a_nan_under_the_mask(self) -> None:
        rewards, mask = torch.ones(1, 4), torch.tensor([[1.0, 1.0, 0.0, 1.0]])
        values = torch.tensor([[0.5, 0.5, NAN, 0.5]])
        assert torch.isnan(verl_gae(rewards, values, mask, 1.0, 0.95)[0][0, :2]).all()
        clean = fgrl.ops.gae(rewards, values.nan_to_num(), mask)
        assert torch.equal(fgrl.ops.gae(rewards, values, mask).advantages, clean.advantages)

    def test_verl_leaves_advantages_and_returns_where_there_is_no_token(self) -> None:
        mask = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
        advantages, returns = verl_gae(torch.ones(1, 4), torch.full((1, 4), 100.0), mask, 1.0, 0.95)
        assert advantages[0, 1] != 0
        assert returns[0, 3] == 100
        ours = fgrl.ops.gae(torch.ones(1, 4), torch.full((1, 4), 100.0), mask)
        assert ours.advantages[0, [1, 3]].tolist() == ours.returns[0, [1, 3]].tolist() == [0, 0]

    @pytest.mark.parametrize("kind", ["full", "tails"])
    def test_openrlhf_is_right_without_holes(self, kind: str) -> None:
        rewards, values, mask = torch.randn(3, 9), torch.randn(3, 9), make_mask(kind, (3, 9))
        assert mask is not None
        ours = fgrl.ops.gae(rewards, values, mask, gamma=0.97, lam=0.9)
        theirs = openrlhf_gae(rewards, values, mask.float(), 0.97, 0.9)
        torch.testing.assert_close(ours.advantages[mask], theirs[0][mask])

    def test_openrlhf_decays_over_a_hole_and_loses_the_value_behind_it(self) -> None:
        """Cutting the tool's tokens out of the sequence must change nothing, and there it does."""
        rewards, values = torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.0, 0.0, 0.5]])
        mask = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
        cut = openrlhf_gae(rewards[:, [0, 3]], values[:, [0, 3]], torch.ones(1, 2), 0.9, 0.9)[0]
        assert not torch.allclose(openrlhf_gae(rewards, values, mask, 0.9, 0.9)[0][:, [0, 3]], cut)
        torch.testing.assert_close(fgrl.ops.gae(rewards, values, mask, gamma=0.9, lam=0.9).advantages[:, [0, 3]], cut)

    def test_openrlhf_spreads_a_nan_under_the_mask(self) -> None:
        values, mask = torch.tensor([[0.5, 0.5, NAN]]), torch.tensor([[1.0, 1.0, 0.0]])
        assert torch.isnan(openrlhf_gae(torch.ones(1, 3), values, mask, 1.0, 0.95)[0]).all()
        assert torch.isfinite(fgrl.ops.gae(torch.ones(1, 3), values, mask).advantages).all()

    def test_a_padded_value_of_100_changes_the_advantages_without_a_mask(self) -> None:
        """The usual accident of a critic that is not masked: ours does not look at the padding."""
        mask = torch.tensor([[1.0, 1.0, 0.0]])
        clean, dirty = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.5, 0.5, 100.0]])
        unmasked = [openrlhf_gae(torch.ones(1, 3), values, torch.ones(1, 3), 1.0, 0.95)[0] for values in (clean, dirty)]
        assert not torch.allclose(unmasked[0][:, :2], unmasked[1][:, :2])
        ours = [fgrl.ops.gae(torch.ones(1, 3), values, mask).advantages for values in (clean, dirty)]
        assert torch.equal(*ours)


def verl_outcome(
    token_rewards: torch.Tensor, mask: torch.Tensor, groups: torch.Tensor, method: str, alone: float = 0.0
) -> torch.Tensor:
    """GRPO ("grpo", "dr-grpo") and RLOO of outcomes given as the sum of the tokens' rewards, group by group.

    `alone` is the mean that a group of one is given: 0 in the loops, as if it had a baseline.
    """
    scores = token_rewards.sum(1)
    advantages = torch.empty_like(scores)
    for group in groups.unique():
        rows = groups == group
        size, mates = int(rows.sum()), scores[rows]
        if size == 1:
            advantages[rows] = mates - alone
        elif method == "rloo":
            advantages[rows] = mates * size / (size - 1) - mates.mean() * size / (size - 1)
        else:
            by = mates.std() + 1e-6 if method == "grpo" else 1.0
            advantages[rows] = (mates - mates.mean()) / by
    return advantages[:, None] * mask


class TestGroups:
    METHODS: ClassVar[dict[str, dict[str, Any]]] = {
        "grpo": {},
        "dr-grpo": {"scale": "none"},
        "rloo": {"scale": "none", "baseline": "leave-one-out"},
    }

    def draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Outcomes, the same as rewards of the last valid token, groups of 2 and of 4, and a mask with holes."""
        rewards, mask = torch.randn(6), make_mask("holes", (6, 9))
        assert mask is not None
        last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        return rewards, torch.where(last, rewards[:, None], 0.0), torch.tensor([3, 5, 3, 5, 5, 5]), mask

    @pytest.mark.parametrize("method", METHODS)
    def test_agrees_with_verl(self, method: str) -> None:
        rewards, token_rewards, groups, mask = self.draw()
        ours = fgrl.ops.group_advantages(rewards, groups, mask, **self.METHODS[method])
        torch.testing.assert_close(ours, verl_outcome(token_rewards, mask, groups, method))

    def test_agrees_with_trl(self) -> None:
        """GRPO and RLOO of equal groups in order; a batch's scale is that of all rewards, not of the centred ones."""
        rewards, mask, groups = torch.randn(6), torch.ones(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
        grouped = rewards.view(2, 3)
        centred = grouped - grouped.mean(1, keepdim=True)
        theirs = {
            "group": centred / (grouped.std(1, keepdim=True) + 1e-6),
            "batch": centred / (rewards.std() + 1e-6),
            "none": centred,
        }
        for scale, expected in theirs.items():
            ours = fgrl.ops.group_advantages(rewards, groups, mask, scale=scale)
            torch.testing.assert_close(ours[:, 0], expected.view(-1))
        alone = grouped - (grouped.sum(1, keepdim=True) - grouped) / 2
        ours = fgrl.ops.group_advantages(rewards, groups, mask, baseline="leave-one-out", scale="none")
        torch.testing.assert_close(ours[:, 0], alone.view(-1))

    def test_verl_returns_to_go_are_reinforce_plus_plus(self) -> None:
        rewards, mask = torch.randn(3, 9), make_mask("holes", (3, 9))
        assert mask is not None
        running, columns = torch.zeros(3), []
        for t in reversed(range(9)):
            fresh = rewards[:, t] + 0.9 * running
            columns.insert(0, fresh * mask[:, t])
            running = torch.where(mask[:, t], fresh, running)
        ours = fgrl.ops.group_advantages(
            None, torch.zeros(3).long(), mask, token_rewards=rewards, baseline="none", scale="none", gamma=0.9
        )
        torch.testing.assert_close(ours, torch.stack(columns, 1))

    def test_verl_gives_a_group_of_one_its_raw_reward(self) -> None:
        """As if the baseline of a lone response were 0: a prompt whose siblings were filtered out is reinforced for
        any positive reward. TRL, and verl's own vectorised RLOO, give 0, which is what its mean makes of it."""
        rewards, mask, groups = torch.tensor([5.0]), torch.ones(1, 2), torch.tensor([0])
        token_rewards = torch.tensor([[0.0, 5.0]])
        for method, options in self.METHODS.items():
            assert verl_outcome(token_rewards, mask, groups, method).tolist() == [[5, 5]]
            assert verl_outcome(token_rewards, mask, groups, method, alone=5.0).tolist() == [[0, 0]]
            assert fgrl.ops.group_advantages(rewards, groups, mask, **options).tolist() == [[0, 0]]

    def test_verl_sums_the_rewards_under_the_mask_too(self) -> None:
        """A reward on padding (a score placed behind the end, NaN of a reward model there) is part of its outcome."""
        _, token_rewards, groups, mask = self.draw()
        dirty = torch.where(mask, token_rewards, NAN)
        assert verl_outcome(dirty, mask, groups, "grpo").isnan().any()
        clean = fgrl.ops.group_advantages(None, groups, mask, token_rewards=token_rewards)
        assert torch.equal(fgrl.ops.group_advantages(None, groups, mask, token_rewards=dirty), clean)

    def test_a_filler_row_moves_the_baseline_of_verl_and_trl(self) -> None:
        """A row without a valid token, added to fill a batch: to them one more response, of reward 0."""
        rewards, groups, mask = torch.tensor([1.0, 3.0, 0.0]), torch.zeros(3).long(), torch.ones(3, 1)
        mask[2] = 0
        theirs = verl_outcome(rewards[:, None], mask, groups, "dr-grpo")
        assert theirs[:2, 0].tolist() != [-1, 1]
        assert fgrl.ops.group_advantages(rewards, groups, mask, scale="none")[:, 0].tolist() == [-1, 1, 0]


class TestWhitening:
    def test_agrees_with_verl(self) -> None:
        advantages, mask = torch.randn(3, 9) * 4 + 2, make_mask("holes", (3, 9))
        assert mask is not None
        theirs = verl_whiten(advantages, mask.float())
        torch.testing.assert_close(fgrl.ops.whiten(advantages, mask)[mask], theirs[mask])
        assert (theirs[~mask] != 0).all()  # what they leave under the mask

    def test_one_valid_token_is_undefined_there(self) -> None:
        advantages, mask = torch.randn(1, 3), torch.tensor([[0.0, 1.0, 0.0]])
        assert not torch.isfinite(verl_whiten(advantages, mask)).all()  # verl itself raises an error instead
        assert fgrl.ops.whiten(advantages, mask).tolist() == [[0.0, 0.0, 0.0]]


class TestPolicyLoss:
    @pytest.mark.parametrize("kind", ["full", "holes", "masked-row"])
    @pytest.mark.parametrize("aggregation", ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean"])
    def test_agrees_with_verl(self, aggregation: str, kind: str) -> None:
        inputs, mask = draw(), make_mask(kind, (4, 9))
        assert mask is not None
        per_token = surrogate(inputs["logprobs"], inputs["old_logprobs"], inputs["advantages"], 0.2, 0.3, 3.0)
        kept = torch.where(mask, per_token, 0.0)
        lengths = mask.sum(1)
        expected = {
            "token-mean": kept.sum() / mask.sum(),
            "token-sum": kept.sum(),
            "seq-mean-token-sum": kept.sum() / (lengths > 0).sum(),
            "seq-mean-token-mean": (kept.sum(1) / (lengths + 1e-8)).sum() / (lengths > 0).sum(),
        }
        config = PPOLossConfig(clip_high=0.3, dual_clip=3.0, aggregation=aggregation)
        torch.testing.assert_close(fgrl.ops.ppo_loss(**inputs, mask=mask, config=config).loss, expected[aggregation])

    def test_statistics_mean_what_verl_logs(self) -> None:
        inputs, mask = draw((8, 33)), make_mask("holes", (8, 33))
        assert mask is not None
        log_ratio = inputs["logprobs"] - inputs["old_logprobs"]
        ratio, advantages = log_ratio.exp(), inputs["advantages"]
        plain, clipped = -advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)
        lower = (torch.max(plain, clipped) > -advantages * 1.5) & (advantages < 0)
        stats = fgrl.ops.ppo_loss(**inputs, mask=mask, config=PPOLossConfig(dual_clip=1.5)).stats
        for ours, theirs in {
            "clip_fraction": verl_masked_mean((clipped > plain).float(), mask),
            "clip_fraction_lower": verl_masked_mean(lower.float(), mask),
            "approx_kl": verl_masked_mean(-log_ratio, mask),
        }.items():
            assert stats[ours] != 0
            torch.testing.assert_close(stats[ours], theirs, msg=ours)

    def test_data_parallel_normalizer_of_verl(self) -> None:
        """verl multiplies each rank's sum by `dp_size` and divides by the global count; the mean over ranks remains."""
        inputs, mask = draw(), make_mask("holes", (4, 9))
        assert mask is not None
        per_token = surrogate(inputs["logprobs"], inputs["old_logprobs"], inputs["advantages"], 0.2, 0.2, 1e9)
        for rank in (slice(0, 2), slice(2, 4)):
            theirs = torch.where(mask, per_token, 0.0)[rank].sum() / mask.sum() * 2
            local = {name: tensor[rank] for name, tensor in inputs.items()}
            ours = fgrl.ops.ppo_loss(**local, mask=mask[rank], normalizer=mask.sum() / 2).loss
            torch.testing.assert_close(ours, theirs)

    def test_a_mask_that_multiplies_gives_a_nan_loss(self) -> None:
        """OpenRLHF everywhere and verl in its seq-* modes; verl's token modes keep the loss but not the gradient.

        The NaN is an advantage, as the GAE of either makes it from a NaN value of the critic on padding.
        """
        inputs, mask = draw((1, 3)), torch.tensor([[1.0, 1.0, 0.0]])
        inputs["advantages"][0, 2] = NAN
        constants = {name: tensor for name, tensor in inputs.items() if name != "logprobs"}

        def multiplied(logprobs: torch.Tensor) -> torch.Tensor:
            loss = surrogate(logprobs, inputs["old_logprobs"], inputs["advantages"], 0.2, 0.2, 1e9)
            return (loss * mask).sum() / mask.sum()

        def selected_late(logprobs: torch.Tensor) -> torch.Tensor:
            loss = surrogate(logprobs, inputs["old_logprobs"], inputs["advantages"], 0.2, 0.2, 1e9)
            return verl_masked_mean(loss, mask)

        def ours(logprobs: torch.Tensor) -> torch.Tensor:
            return fgrl.ops.ppo_loss(logprobs, **constants, mask=mask).loss

        logprobs = {"logprobs": inputs["logprobs"]}
        assert torch.isnan(gradients(multiplied, logprobs)[0])
        late, late_gradient = gradients(selected_late, logprobs)
        assert torch.isfinite(late)
        assert torch.isnan(late_gradient["logprobs"][0, 2])
        loss, gradient = gradients(ours, logprobs)
        torch.testing.assert_close(loss, late)
        torch.testing.assert_close(gradient["logprobs"][0, :2], late_gradient["logprobs"][0, :2])
        assert gradient["logprobs"][0, 2] == 0

    def test_trl_counts_fully_masked_sequences_in_the_mean(self) -> None:
        """`loss_type="grpo"` averages over all rows; a row without a token then dilutes the others. A normalizer
        gives that number, and `dr_grpo`'s constant length is `token-sum` over a normalizer."""
        inputs, mask = draw(), make_mask("masked-row", (4, 9))
        assert mask is not None
        per_token = surrogate(inputs["logprobs"], inputs["old_logprobs"], inputs["advantages"], 0.2, 0.2, 1e9)
        kept = torch.where(mask, per_token, 0.0)
        grpo = (kept.sum(1) / mask.sum(1).clamp(min=1)).mean()
        config = PPOLossConfig(aggregation="seq-mean-token-mean")
        ours = fgrl.ops.ppo_loss(**inputs, mask=mask, config=config).loss
        torch.testing.assert_close(ours, grpo * 4 / 3)
        torch.testing.assert_close(fgrl.ops.ppo_loss(**inputs, mask=mask, normalizer=4, config=config).loss, grpo)
        constant = PPOLossConfig(aggregation="token-sum")
        torch.testing.assert_close(
            fgrl.ops.ppo_loss(**inputs, mask=mask, normalizer=4 * 512, config=constant).loss, kept.sum() / (4 * 512)
        )


class TestKL:
    @pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
    def test_values(self, estimator: str) -> None:
        logprobs, ref = -torch.rand(50) * 3, -torch.rand(50) * 3
        gap = logprobs - ref
        theirs = {"k1": gap, "k2": 0.5 * gap**2, "k3": torch.exp(-gap) + gap - 1, "abs": gap.abs()}[estimator]
        torch.testing.assert_close(kl_value(logprobs, ref, estimator), theirs, rtol=1e-5, atol=1e-6)

    def test_verl_and_openrlhf_cap_k3_at_10_and_we_do_not(self) -> None:
        logprobs, ref = torch.tensor([[-6.0]]), torch.tensor([[0.0]])
        exact = torch.tensor([[6.0]]).exp() - 7
        assert exact > 10
        kl = fgrl.ops.token_advantages(None, torch.zeros(1, 1), logprobs, ref, kl_estimator="k3").kl
        torch.testing.assert_close(kl, exact)

    def test_k3_as_written_loses_its_sign_near_zero(self) -> None:
        gap = torch.linspace(-3e-4, 3e-4, 50)
        assert (torch.exp(-gap) + gap - 1 < 0).any()
        assert (kl_value(gap, torch.zeros(50), "k3") >= 0).all()

    def test_the_plus_gradient_is_openrlhfs_unbiased_one(self) -> None:
        inputs = draw()
        inputs["advantages"].zero_()
        config = PPOLossConfig(kl_coef=1.0, kl_estimator="k3+")
        constants = {name: tensor for name, tensor in inputs.items() if name != "logprobs"}
        ours = gradients(
            lambda logprobs: fgrl.ops.ppo_loss(logprobs, **constants, config=config).loss,
            {"logprobs": inputs["logprobs"]},
        )[1]["logprobs"]
        weight = (inputs["logprobs"] - inputs["old_logprobs"]).exp()
        torch.testing.assert_close(ours, weight * (inputs["logprobs"] - inputs["ref_logprobs"]) / ours.numel())


def test_value_loss_agrees_with_verl() -> None:
    values, old, returns, mask = torch.randn(4, 9), torch.randn(4, 9), torch.randn(4, 9), make_mask("holes", (4, 9))
    assert mask is not None
    near = torch.max(torch.min(values, old + 0.2), old - 0.2)
    theirs = 0.5 * verl_masked_mean(torch.max((values - returns) ** 2, (near - returns) ** 2), mask)
    loss, stats = fgrl.ops.value_loss(values, old, returns, mask, clip=0.2)
    torch.testing.assert_close(loss, theirs)
    clipped = verl_masked_mean(((near - returns) ** 2 > (values - returns) ** 2).float(), mask)
    torch.testing.assert_close(stats["clip_fraction"], clipped)


def test_the_score_is_placed_on_the_last_valid_token() -> None:
    """OpenRLHF finds it in the mask as we do; a mask that starts late or has holes is no obstacle."""
    mask = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
    last = 4 - mask.fliplr().argmax(1)
    theirs = torch.zeros(2, 5).scatter(1, last[:, None], torch.tensor([[3.0], [4.0]]))
    ours = fgrl.ops.token_advantages(
        None, torch.zeros(2, 5), None, None, mask, sequence_rewards=torch.tensor([3.0, 4.0]), lam=0.0
    )
    torch.testing.assert_close(ours.advantages, theirs)


def test_entropy_agrees_with_the_formula_of_all_three() -> None:
    hidden, weight = torch.randn(5, 8), torch.randn(31, 8)
    logits = hidden @ weight.T / 0.7
    theirs = torch.logsumexp(logits, -1) - (logits.softmax(-1) * logits).sum(-1)
    ours = fgrl.ops.linear_logprobs(hidden, weight, torch.zeros(5).long(), temperature=0.7, return_entropy=True)[1]
    torch.testing.assert_close(ours, theirs)
