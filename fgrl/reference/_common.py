"""What several references share: masked selection, and packed rows."""

from __future__ import annotations

import torch
from torch import Tensor


def as_mask(mask: Tensor | None, like: Tensor) -> Tensor:
    """`mask` as bool; all true, in the shape of `like`, when there is none."""
    if mask is None:
        return torch.ones(like.shape, dtype=torch.bool, device=like.device)
    return mask != 0


def select(tensor: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` where `mask` is true, 0 elsewhere: a NaN under the mask is neither seen nor differentiated."""
    return torch.where(mask, tensor.to(dtype), torch.zeros((), dtype=dtype, device=tensor.device))


class Rows:
    """One row per sequence, `[B, T]`, for tensors that are padded `[B, T]` or packed `[N]` with `cu_seqlens [B + 1]`.

    Packed sequences are laid into rows as long as the longest, so that one recursion over time serves both layouts.
    """

    def __init__(self, cu_seqlens: Tensor | None) -> None:
        self.inside: Tensor | None = None
        if cu_seqlens is not None:
            starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
            longest = int(lengths.max()) if len(lengths) else 0
            offsets = torch.arange(longest, device=cu_seqlens.device)
            self.inside = offsets < lengths[:, None]  # [B, T]
            self.positions = torch.where(self.inside, starts[:, None] + offsets, cu_seqlens[-1])  # [B, T]

    def split(self, tensor: Tensor) -> Tensor:
        """Packed `[N]` to `[B, T]`, with 0 past the end of a sequence; padded tensors as they are."""
        if self.inside is None:
            return tensor
        return torch.cat([tensor, tensor.new_zeros(1)])[self.positions]

    def join(self, rows: Tensor) -> Tensor:
        """`[B, T]` back to the layout of the input."""
        return rows if self.inside is None else rows[self.inside]
