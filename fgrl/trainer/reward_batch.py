"""A collated batch of pairs, seen as two sides of `[B, T]`, whether it was padded or packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Side(NamedTuple):
    """One side of `B` pairs. All `[B, T]`; the last three bool."""

    rewards: Tensor
    mask: Tensor
    edits: Tensor
    errors: Tensor


def count_pairs(batch: Mapping[str, Tensor]) -> int:
    """Pairs in a batch of `PairCollator`, from shapes alone."""
    sequences = batch["cu_seqlens"].numel() - 1 if "cu_seqlens" in batch else batch["input_ids"].shape[0]
    return sequences // 2


def split_sides(rewards: Tensor, batch: Mapping[str, Tensor]) -> tuple[Side, Side]:
    """The chosen (edited) and the rejected (original) side.

    Args:
        rewards: of the shape of `batch["input_ids"]`: `[2B, T]` padded, `[1, N]` packed.
        batch: what `PairCollator` made.
    """
    fields = [rewards, batch["response_mask"], batch["edits"], batch["error_mask"]]
    if "cu_seqlens" in batch:
        fields = unpack(fields, batch["cu_seqlens"])
    masks = [field.bool() for field in fields[1:]]
    half = count_pairs(batch)
    chosen, rejected = (
        Side(*(field[rows] for field in (fields[0], *masks))) for rows in (slice(half), slice(half, None))
    )
    return chosen, rejected


def unpack(fields: list[Tensor], cu_seqlens: Tensor) -> list[Tensor]:
    """Packed `[1, N]` fields -> padded `[S, T]`, with 0 behind the end of each sequence. Reads one integer back."""
    lengths = cu_seqlens.diff()
    columns = torch.arange(int(lengths.max()), device=cu_seqlens.device)
    valid = columns < lengths[:, None]  # [S, T]
    return [field.new_zeros(valid.shape).masked_scatter(valid, field.reshape(-1)) for field in fields]


def last_token(mask: Tensor) -> Tensor:
    """`[B, T]` bool, True at the last True of each row of `mask`; nowhere in a row without one."""
    remaining = mask.flip(1).cumsum(1).flip(1)  # response tokens from here on
    return mask & (remaining == 1)
