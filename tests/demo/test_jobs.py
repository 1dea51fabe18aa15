"""Jobs give the same results, in the same order, whether they run here or in other processes."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

from fgrl.demo.jobs import Job, JobRunner


def _double(value: float, tick: Any) -> float:
    tick(0.5)
    if value < 0:
        raise ValueError("value is negative")
    return 2 * value


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_keep_their_order_and_raise_their_errors(workers: int) -> None:
    shares: list[float] = []
    with JobRunner(workers, shares.append) as runner:
        assert runner.run([Job(_double, (value,)) for value in (1.0, 2.0, 3.0)]) == [2.0, 4.0, 6.0]
        with pytest.raises(ValueError, match="negative"):
            runner.run([Job(_double, (-1.0,))])
    assert shares
    assert all(0.0 <= share <= 1.0 for share in shares)


def test_at_least_one_worker_is_needed() -> None:
    with pytest.raises(ValueError, match="workers"):
        JobRunner(0)
