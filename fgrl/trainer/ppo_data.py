"""Prompts in the order PPO consumes them: each group of prompts is repeated for as long as its rollout is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback


class RolloutSampler(Sampler[int]):
    """Yields the indices of one rollout `repeats` times, then those of the next.

    The dataloader of a `transformers.Trainer` gives one batch a forward-backward pass. A rollout is used for many, so
    its prompts come as often; only the first time they are sampled from. The last group of an epoch is filled up from
    another shuffle, so that no prompt is dropped and every rollout is full.

    Args:
        size: number of prompts.
        group: prompts a rollout, over all processes.
        repeats: forward-backward passes a rollout.
        shuffle: new order each epoch; False keeps the order of the data.
        seed: of the order.
    """

    def __init__(self, size: int, group: int, repeats: int, *, shuffle: bool, seed: int) -> None:
        self.size, self.group, self.repeats = size, group, repeats
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.groups = -(-size // group)

    def __len__(self) -> int:
        return self.groups * self.group * self.repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = []
        while len(order) < self.groups * self.group:
            order += torch.randperm(self.size, generator=generator).tolist() if self.shuffle else range(self.size)
        for start in range(0, self.groups * self.group, self.group):
            for _ in range(self.repeats):
                yield from order[start : start + self.group]


class SetSamplerEpoch(TrainerCallback):
    """Tells the sampler the epoch, which the dataloader wrappers of several processes do not pass on."""

    def __init__(self, sampler: RolloutSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        self.sampler.epoch = int(state.epoch or 0)


def as_rows(batch: list[Any]) -> list[Any]:
    """Collator that leaves the rows as they are."""
    return batch
