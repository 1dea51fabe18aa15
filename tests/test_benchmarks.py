"""The benchmarks run, and refuse to time wrong results."""

from __future__ import annotations

import pytest
import torch

import fgrl

pytest.importorskip("rapidfuzz")
align_edits = pytest.importorskip("benchmarks.align_edits")


def test_alignment_is_measured_against_its_peers() -> None:
    times = align_edits.measure(align_edits.random_pairs(32, 0.2, 3), rounds=1, slow_peers=True)
    assert {"fgrl", "fgrl lists", "rapidfuzz", "hinted", "difflib", "wall 2 threads"} <= set(times)
    assert min(times.values()) > 0


def test_wrong_alignments_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fgrl.align_edits([[1, 2]], [[1, 3]])
    wrong = fgrl.EditAlignment(
        torch.tensor([2]), right.original_ops, right.edited_ops, right.original_cu_seqlens, right.edited_cu_seqlens
    )
    monkeypatch.setattr(align_edits.fgrl, "align_edits", lambda *_: wrong)
    with pytest.raises(RuntimeError, match="disagree on a distance"):
        align_edits.check([([1, 2], [1, 3])])


@pytest.mark.parametrize(("length", "rate", "ratio"), [(512, 0.02, 20), (8192, 0.0, 60), (64, 0.0, 5), (8192, 0.5, 5)])
def test_goals(length: int, rate: float, ratio: float) -> None:
    assert align_edits.goal(length, rate) == ratio
