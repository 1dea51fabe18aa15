"""Generalised advantage estimation; the kernels are those of `_advantages.py`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fgrl.kernels._advantages import Outputs, Sequences, Split, Tokens, aot_batches, launch
from fgrl.kernels._launch import Case
from fgrl.types import compute_dtype


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor | None,
    bootstrap: Tensor | None,
    lams: Tensor | None,
    cu_seqlens: Tensor | None,
    gamma: float,
    lam: float,
    *,
    split: Split = Split(),  # noqa: B008
) -> tuple[Tensor, Tensor]:
    """delta_t = r_t + gamma * V_t' - V_t,   A_t = delta_t + gamma * lam * A_t',   returns_t = A_t + V_t

    Reads rewards, values and mask once (twice where sequences are few and long) and writes two results once:
    17 bytes a token in fp32 with a mask of one byte.
    """
    dtype = compute_dtype(rewards, values, bootstrap)
    advantages, returns = (torch.empty(values.shape, dtype=dtype, device=values.device) for _ in range(2))
    tokens = Tokens(rewards, values, None, None, mask)
    sequences = Sequences(None, bootstrap, lams, cu_seqlens)
    launch(Outputs(advantages, returns, None), tokens, sequences, gamma, lam, split=split)
    return advantages, returns


def aot_cases() -> Iterator[Case]:
    """Each batch with everything optional but a lambda of each sequence, and one with nothing but that."""
    for label, tokens, mask, per_sequence, cu_seqlens in aot_batches():
        yield Case(label, gae, (tokens, tokens, mask, per_sequence, None, cu_seqlens, 0.99, 0.95))
    yield Case(f"{label}, lam [B]", gae, (tokens, tokens, None, None, per_sequence, cu_seqlens, 0.99, 1.0))
