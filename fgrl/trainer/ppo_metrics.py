"""Weighted means and maxima of what training reports, kept on the device until somebody logs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Number = Tensor | float


class RunningMeans:
    """Means over many calls and over processes; reading them waits for the device once.

    Args:
        device: where the values come from.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Number], weight: Number = 1.0) -> None:
        """Add one value each, all of the same weight (their number of tokens, say)."""
        weight = self._number(weight)
        for name, value in values.items():
            product = torch.where(weight > 0, self._number(value) * weight, 0.0)
            self._sums[name] = self._sums.get(name, torch.zeros_like(product)) + product
            self._weights[name] = self._weights.get(name, torch.zeros_like(weight)) + weight

    def add_maximum(self, name: str, value: Number) -> None:
        """Keep the larger of `value` and what was there."""
        new = self._number(value)
        self._maxima[name] = torch.maximum(self._maxima[name], new) if name in self._maxima else new

    def collect(self, accelerator: Any) -> dict[str, float]:
        """The means and maxima over all processes; starts over. Every process must call it, with the same names."""
        names, maxima = list(self._sums), list(self._maxima)
        result: dict[str, float] = {}
        if names:
            table = torch.stack([torch.stack([self._sums[name], self._weights[name]]) for name in names])  # [M, 2]
            sums, weights = accelerator.reduce(table, "sum").cpu().unbind(1)
            result = dict(zip(names, (sums / weights.clamp(min=1e-12)).tolist(), strict=True))
        if maxima:
            table = torch.stack([self._maxima[name] for name in maxima])[None]  # [1, M]
            result |= dict(zip(maxima, accelerator.gather(table).amax(0).tolist(), strict=True))
        self._sums, self._weights, self._maxima = {}, {}, {}
        return result

    def _number(self, value: Number) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(self.device, torch.float64)
        return torch.tensor(value, dtype=torch.float64, device=self.device)
