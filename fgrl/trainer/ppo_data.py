"""Prompts in the order PPO consumes them: each group of prompts is repeated for as long as its rollout is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback

from fgrl.data import PromptDataset


def prompt_rows(dataset: Any, tokenizer: Any, max_prompt_length: int, name: str, vocab_size: int | None = None) -> Any:
    """`dataset` as rows with `prompt_ids`. Every row has every column of the data set, None where it is absent.

    Args:
        dataset: whatever `fgrl.data.read_prompts` reads, or rows that all have `prompt_ids` already. None stays None.
        tokenizer: turns prompts into token ids.
        max_prompt_length: longer prompts lose their beginning.
        name: what error messages call the data.
        vocab_size: ids in `prompt_ids` must be below it; None for no bound.

    Raises:
        ValueError: no rows, a row that cannot be used, `prompt_ids` in some rows only, or an id outside the vocabulary.
    """
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        raise ValueError(f"{name} is a dict; it must be one data set")
    rows = None if isinstance(dataset, PromptDataset) else _tokenized_rows(dataset, name)
    if rows is not None:
        rows = [{**row, "prompt_ids": _cut(row["prompt_ids"], max_prompt_length)} for row in rows]
    elif isinstance(dataset, PromptDataset):
        rows = list(dataset)
    else:
        rows = list(PromptDataset(dataset, tokenizer, max_prompt_length=max_prompt_length))
    if not rows:
        raise ValueError(f"{name} is empty; it must have at least one prompt")
    for number, row in enumerate(rows, 1):
        _check_ids(row["prompt_ids"], vocab_size, f"{name}, row {number}")
    columns = {column: None for row in rows for column in row}
    return [row if len(row) == len(columns) else {**columns, **row} for row in rows]


def _tokenized_rows(dataset: Any, name: str) -> list[Mapping[str, Any]] | None:
    """The rows of a map-style data set where they have `prompt_ids`, None where they do not."""
    if isinstance(dataset, str) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        return None
    rows = [dataset[index] for index in range(len(dataset))]
    tokenized = [isinstance(row, Mapping) and row.get("prompt_ids") is not None for row in rows]
    if not any(tokenized):
        return None
    if not all(tokenized):
        raise ValueError(
            f"{name} has prompt_ids in some rows only; row {tokenized.index(False) + 1} has none: it must have them in "
            "all rows, or in none"
        )
    return rows


def _cut(ids: Any, length: int) -> list[int]:
    return [int(token) for token in ids][-length:]


def _check_ids(ids: Sequence[int], vocab_size: int | None, row: str) -> None:
    if not ids:
        raise ValueError(f"{row}: prompt_ids is empty; it must have at least one token")
    for bad in (min(ids), max(ids)):
        if bad < 0 or (vocab_size is not None and bad >= vocab_size):
            bound = "at least 0" if vocab_size is None else f"in [0, {vocab_size}), the vocabulary of all models"
            raise ValueError(f"{row}: prompt_ids has {bad}; it must be {bound}")


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


class RolloutCallback(TrainerCallback):
    """Keeps the trainer's events in step with the rollouts.

    Tells the sampler the epoch, which the dataloader wrappers of several processes do not pass on, and puts off
    checkpoints and evaluations to the end of a rollout: a run resumed from there is the run that was not interrupted.

    Args:
        sampler: of the training prompts.
        steps: optimizer steps a rollout.
    """

    def __init__(self, sampler: RolloutSampler, steps: int) -> None:
        self.sampler, self.steps = sampler, steps
        self._save = self._evaluate = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        self.sampler.epoch = int(state.epoch or 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer, after its own callback has decided what is due."""
        self._save |= control.should_save
        self._evaluate |= control.should_evaluate
        is_boundary = state.global_step % self.steps == 0 or control.should_training_stop
        control.should_save, control.should_evaluate = self._save and is_boundary, self._evaluate and is_boundary
        if is_boundary:
            self._save = self._evaluate = False


def as_rows(batch: list[Any]) -> list[Any]:
    """Collator that leaves the rows as they are."""
    return batch
