"""The comparison of sequences within groups: centre and scale of each from the statistics of all others."""

from __future__ import annotations

import triton
import triton.language as tl

_MEAN, _LEAVE_ONE_OUT, _NONE = (tl.constexpr(index) for index in range(3))  # baselines, and so scales:
_GROUP, _BATCH = tl.constexpr(0), tl.constexpr(1)
# Rows of the statistics of each sequence, fp64.
VALID, COUNT, TOTAL, SQUARES, LEAST, POSITION, NORM = (tl.constexpr(row) for row in range(7))
STATISTICS = 7


@triton.jit
def _items_of(statistics_ptr, rewards_ptr, sequences, inside, batch, OF_TOKENS: tl.constexpr):
    """Count, sum and squares of the sequences' scores, or of their outcomes, in fp64."""
    valid = tl.load(statistics_ptr + VALID * batch + sequences, mask=inside, other=0.0)
    if OF_TOKENS:
        count = tl.load(statistics_ptr + COUNT * batch + sequences, mask=inside, other=0.0)
        total = tl.load(statistics_ptr + TOTAL * batch + sequences, mask=inside, other=0.0)
        squares = tl.load(statistics_ptr + SQUARES * batch + sequences, mask=inside, other=0.0)
    else:
        count = valid
        total = tl.where(valid != 0, tl.load(rewards_ptr + sequences, mask=inside, other=0).to(tl.float64), 0.0)
        squares = tl.zeros_like(valid)
    return count, total, squares


@triton.jit
def _compare(
    comparisons_ptr,
    statistics_ptr,
    rewards_ptr,
    groups_ptr,
    batch,
    BASELINE: tl.constexpr,
    SCALE: tl.constexpr,
    OF_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    groups = tl.load(groups_ptr + rows, mask=rows < batch, other=0)
    own = _items_of(statistics_ptr, rewards_ptr, rows, rows < batch, batch, OF_TOKENS)
    count = tl.zeros([ROWS], tl.float64)
    total = tl.zeros([ROWS], tl.float64)
    batch_count = tl.full([], 0.0, tl.float64)
    batch_total = tl.full([], 0.0, tl.float64)
    for start in range(0, batch, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < batch
        others = tl.load(groups_ptr + columns, mask=inside, other=0)
        counts, totals, _ = _items_of(statistics_ptr, rewards_ptr, columns, inside, batch, OF_TOKENS)
        same = (groups[:, None] == others[None, :]) & inside[None, :]  # [ROWS, COLUMNS]
        count += tl.sum(tl.where(same, counts[None, :], 0.0), 1)
        total += tl.sum(tl.where(same, totals[None, :], 0.0), 1)
        batch_count += tl.sum(counts, 0)
        batch_total += tl.sum(totals, 0)
    means = total / tl.maximum(count, 1.0)
    centre = tl.zeros([ROWS], tl.float64)
    if BASELINE != _NONE:
        centre = means
    if BASELINE == _LEAVE_ONE_OUT:
        others_count = count - own[0]
        centre = tl.where(others_count > 0, (total - own[1]) / tl.maximum(others_count, 1.0), means)
    factor = tl.full([ROWS], 1.0, tl.float64)
    if SCALE != _NONE:
        squares = tl.zeros([ROWS], tl.float64)
        if SCALE == _BATCH:
            count = tl.zeros([ROWS], tl.float64) + batch_count
            means = tl.zeros([ROWS], tl.float64) + batch_total / tl.maximum(batch_count, 1.0)
        for start in range(0, batch, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            inside = columns < batch
            others = tl.load(groups_ptr + columns, mask=inside, other=0)
            counts, totals, squares_of = _items_of(statistics_ptr, rewards_ptr, columns, inside, batch, OF_TOKENS)
            same = (groups[:, None] == others[None, :]) & inside[None, :]
            if SCALE == _BATCH:
                same = same | inside[None, :]
            shifts = (totals / tl.maximum(counts, 1.0))[None, :] - means[:, None]
            squares += tl.sum(tl.where(same, squares_of[None, :] + counts[None, :] * shifts * shifts, 0.0), 1)
        deviation = tl.sqrt(squares / tl.maximum(count - 1.0, 1.0)) + 1e-6
        factor = tl.where(count > 1, 1.0 / deviation, 1.0)
    first = 2 * batch if OF_TOKENS else 0
    tl.store(comparisons_ptr + first + rows, centre, mask=rows < batch)
    tl.store(comparisons_ptr + first + batch + rows, factor, mask=rows < batch)


@triton.jit(do_not_specialize=["batch"])
def _group_compare_fwd_kernel(
    comparisons_ptr,  # [4, batch] fp64: centre and factor of outcomes, centre and factor of scores
    statistics_ptr,  # [7, batch] fp64
    rewards_ptr,  # [batch]
    groups_ptr,  # [batch]
    batch,
    HAS_SCORES: tl.constexpr,
    BASELINE: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """centre: the mean over the group, or over its other sequences; factor: 1 / (standard deviation + 1e-6)"""
    HAS_OUTCOMES: tl.constexpr = rewards_ptr is not None
    if HAS_OUTCOMES:
        _compare(comparisons_ptr, statistics_ptr, rewards_ptr, groups_ptr, batch, BASELINE, SCALE, False, ROWS, COLUMNS)
    if HAS_SCORES:
        _compare(comparisons_ptr, statistics_ptr, rewards_ptr, groups_ptr, batch, BASELINE, SCALE, True, ROWS, COLUMNS)
