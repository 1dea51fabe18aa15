"""`RankAUC` against counting pairs, and `RewardMetrics` on rows small enough to work out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fgrl.trainer.reward_metrics import RankAUC, RewardMetrics


def counted(scores: list[float], positive: list[bool]) -> float | None:
    above = [score for score, is_positive in zip(scores, positive, strict=True) if is_positive]
    below = [score for score, is_positive in zip(scores, positive, strict=True) if not is_positive]
    if not above or not below:
        return None
    wins = sum((high > low) + 0.5 * (high == low) for high in above for low in below)
    return wins / (len(above) * len(below))


# Few distinct values, so that most examples have ties; -0.0 and 0.0 are one value.
score_lists = st.lists(
    st.tuples(st.sampled_from([-math.inf, -2.5, -0.0, 0.0, 1e-30, 1.0, 3.0]), st.booleans()), max_size=40
)


@given(rows=score_lists, cuts=st.lists(st.integers(0, 40), max_size=3))
@settings(max_examples=200, deadline=None)
def test_auc_counts_pairs_with_ties_half_whatever_the_batches(rows: list[tuple[float, bool]], cuts: list[int]) -> None:
    scores, positive = [row[0] for row in rows], [row[1] for row in rows]
    auc = RankAUC()
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    for start, end in itertools.pairwise(edges):
        auc.update(torch.tensor(scores[start:end]), torch.tensor(positive[start:end], dtype=torch.bool))
    expected = counted(scores, positive)
    if expected is None:
        assert auc.compute() is None
    else:
        assert auc.compute() == pytest.approx(expected, abs=1e-12)


def overlapping(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(count, generator=generator) < 0.3
    return torch.randn(count, generator=generator) + 0.7 * positive, positive


def test_auc_is_exact_while_the_scores_fit() -> None:
    scores, positive = overlapping(2000)
    auc = RankAUC(capacity=2000)
    auc.update(scores, positive)
    assert auc.compute() == pytest.approx(counted(scores.tolist(), positive.tolist()), abs=1e-12)


def test_auc_in_constant_memory_stays_close() -> None:
    scores, positive = overlapping(50_000)
    exact, small = RankAUC(), RankAUC(capacity=1024)
    exact.update(scores, positive)
    for chunk, labels in zip(scores.split(700), positive.split(700), strict=True):
        small.update(chunk, labels)
        assert len(small._values) + small._pending_size < 2 * 1024 + 700
    assert small.compute() == pytest.approx(exact.compute(), abs=2e-3)
    assert small._counts.sum() == 50_000


def test_auc_of_nan_is_nan() -> None:
    auc = RankAUC()
    auc.update(torch.tensor([1.0, math.nan, 0.0]), torch.tensor([True, True, False]))
    assert math.isnan(auc.compute() or 0.0)


def test_auc_refuses_a_capacity_that_no_float_fits() -> None:
    with pytest.raises(ValueError, match="capacity is 10; it must be at least 1024"):
        RankAUC(capacity=10)


def update(metrics: RewardMetrics, **changes: Tensor) -> None:
    """Three pairs: a right one, a tied one and one without an edit; the second has human spans."""
    batch = {
        "margins": torch.tensor([2.0, 0.0, 0.0]),
        "has_edits": torch.tensor([True, True, False]),
        "rewards": torch.tensor([[9.0, 1.0, -1.0, 0.5], [9.0, 0.0, 0.0, 2.0], [9.0, 3.0, 3.0, -9.0]]),
        "mask": torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0]]).bool(),
        "edits": torch.tensor([[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).bool(),
        "errors": torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]).bool(),
        "has_errors": torch.tensor([False, True, False]),
    }
    metrics.update(**{**batch, **changes})


def test_metrics_by_hand() -> None:
    metrics = RewardMetrics()
    update(metrics)
    values = metrics.compute()
    assert values["pairs"] == 3
    assert values["pairs_without_edits"] == 1
    assert values["pair_accuracy"] == 0.75  # one right, one tied, the one without an edit left out
    assert values["margin"] == 1.0
    # edited -1 and 0 against kept 1, 0.5, 0, 2, 3, 3: eleven wins and one tie of twelve
    assert values["edit_auc"] == pytest.approx(11.5 / 12)
    # in a span 0 and 2, outside 0, of the second row alone: a tie and a loss
    assert values["span_auc"] == pytest.approx(0.25)


def test_metrics_add_up_over_batches() -> None:
    once, twice = RewardMetrics(), RewardMetrics()
    update(once)
    update(twice)
    update(twice)
    assert twice.compute() == {**once.compute(), "pairs": 6, "pairs_without_edits": 2}


def test_metrics_leave_out_what_was_not_seen() -> None:
    metrics = RewardMetrics()
    nothing = torch.zeros(3, dtype=torch.bool)
    update(metrics, has_edits=nothing, edits=torch.zeros(3, 4).bool(), has_errors=nothing)
    assert metrics.compute() == {"pairs": 3, "pairs_without_edits": 3}
