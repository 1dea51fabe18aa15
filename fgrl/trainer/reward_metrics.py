"""Metrics of a token reward model, gathered batch by batch in constant memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MANTISSA_BITS = 23


class RankAUC:
    """Probability that a positive scores above a negative, ties counted half (the Mann-Whitney statistic).

    Scores are kept as distinct fp32 values with their counts. The statistic is exact up to `capacity` distinct values;
    beyond that the values lose low mantissa bits, and what then coincides counts as tied: memory stays constant however
    many scores there are, and the default capacity keeps at least 11 bits of relative precision.

    Example:
        >>> auc = RankAUC()
        >>> auc.update(torch.tensor([0.9, 0.4, 0.4]), torch.tensor([True, True, False]))
        >>> auc.compute()
        0.75
    """

    def __init__(self, capacity: int = 1 << 20) -> None:
        if capacity < 1024:
            raise ValueError(f"capacity is {capacity}; it must be at least 1024")
        self.capacity = capacity
        self._values = torch.empty(0)
        self._counts = torch.empty(0, 2, dtype=torch.int64)  # negatives, positives of each value
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._pending_size = 0
        self._dropped_bits = 0
        self._has_nan = False

    def update(self, scores: Tensor, positive: Tensor) -> None:
        """Add scores `[N]` with their classes `[N]` (bool), on any device."""
        scores = scores.detach().float().cpu()
        positive = positive.detach().bool().cpu()
        self._pending.append((scores, positive))
        self._pending_size += scores.numel()
        if self._pending_size >= self.capacity:
            self._merge()

    def compute(self) -> float | None:
        """The statistic; None when a class is empty, NaN when a score was."""
        self._merge()
        negatives, positives = self._counts.double().unbind(1)
        pairs = float(negatives.sum() * positives.sum())
        if self._has_nan:
            return math.nan
        if pairs == 0:
            return None
        below = negatives.cumsum(0) - negatives
        return float((positives * (below + 0.5 * negatives)).sum()) / pairs

    def _merge(self) -> None:
        if not self._pending:
            return
        scores = torch.cat([scores for scores, _ in self._pending])
        positive = torch.cat([positive for _, positive in self._pending]).long()
        self._pending, self._pending_size = [], 0
        nan = scores.isnan()
        if nan.any():
            self._has_nan = True
            scores, positive = scores[~nan], positive[~nan]
        counts = torch.stack([1 - positive, positive], dim=1)
        self._collapse(torch.cat([self._values, scores]), torch.cat([self._counts, counts]))
        while len(self._values) > self.capacity and self._dropped_bits < _MANTISSA_BITS:
            self._dropped_bits += 1
            self._collapse(self._values, self._counts)

    def _collapse(self, values: Tensor, counts: Tensor) -> None:
        """Sum the counts of equal values, after cutting the bits that capacity costs (a monotone map)."""
        if self._dropped_bits:
            values = (values.view(torch.int32) >> self._dropped_bits << self._dropped_bits).view(torch.float32)
        self._values, place = values.unique(return_inverse=True)
        self._counts = torch.zeros(len(self._values), 2, dtype=torch.int64).index_add_(0, place, counts)


class RewardMetrics:
    """What `TokenRewardTrainer` reports at each evaluation.

    - `pair_accuracy`: share of pairs whose margin is above 0, a margin of exactly 0 counted half.
    - `loss`: mean loss of all pairs, where losses are given.
    - `margin`: mean margin, chosen minus rejected score.
    - `edit_auc`: on the original (rejected) side, probability that an edited token has a lower reward than a kept one.
    - `span_auc`: the same against the error spans that a human marked; only where rows have spans.
    - `pairs`, `pairs_without_edits`: pairs seen, and those among them in which nothing was edited. The latter have a
      margin of 0 whatever the model says, and are left out of `pair_accuracy` and `margin`; their tokens are kept ones.
    """

    def __init__(self, auc_capacity: int = 1 << 20) -> None:
        self._pairs = 0
        self._without_edits = 0
        self._correct = 0.0
        self._margin = 0.0
        self._loss: float | None = None
        self._edit_auc = RankAUC(auc_capacity)
        self._span_auc = RankAUC(auc_capacity)

    def update(
        self,
        margins: Tensor,
        has_edits: Tensor,
        rewards: Tensor,
        mask: Tensor,
        edits: Tensor,
        errors: Tensor,
        has_errors: Tensor,
        losses: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            margins: `[B]`.
            has_edits: `[B]` bool, whether either side of the pair has an edited token.
            rewards: `[B, T]`, rewards of the original side.
            mask: `[B, T]` bool, its response tokens.
            edits: `[B, T]` bool, its edited tokens.
            errors: `[B, T]` bool, its tokens in a human error span.
            has_errors: `[B]` bool, whether a human marked spans in the row at all.
            losses: `[B]`, losses of the pairs; None where there are none.
        """
        margins, has_edits = margins.cpu().double(), has_edits.cpu()  # not every GPU has fp64
        self._pairs += len(margins)
        if losses is not None:
            self._loss = (self._loss or 0.0) + float(losses.cpu().double().sum())
        self._without_edits += int((~has_edits).sum())
        margins = margins[has_edits]
        self._correct += float((margins > 0).sum()) + 0.5 * float((margins == 0).sum())
        self._margin += float(margins.sum())
        mask = mask.bool()
        self._edit_auc.update(-rewards[mask], edits[mask])
        marked = mask & has_errors[:, None]
        self._span_auc.update(-rewards[marked], errors[marked])

    def compute(self) -> dict[str, float]:
        """The metrics by name; one that nothing was seen for is left out."""
        metrics: dict[str, float] = {"pairs": self._pairs, "pairs_without_edits": self._without_edits}
        edited = self._pairs - self._without_edits
        if self._loss is not None and self._pairs:
            metrics["loss"] = self._loss / self._pairs
        if edited:
            metrics["pair_accuracy"] = self._correct / edited
            metrics["margin"] = self._margin / edited
        for name, auc in (("edit_auc", self._edit_auc), ("span_auc", self._span_auc)):
            value = auc.compute()
            if value is not None:
                metrics[name] = value
        return metrics
