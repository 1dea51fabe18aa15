"""Generalised advantage estimation; the kernels are those of `_advantages.py`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fgrl.kernels._advantages import Outputs, Sequences, Tokens, aot_batch, launch
from fgrl.kernels._launch import Case, flags, flat
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
) -> tuple[Tensor, Tensor]:
    """delta_t = r_t + gamma * V_t' - V_t,   A_t = delta_t + gamma * lam * A_t',   returns_t = A_t + V_t

    Reads rewards, values and mask once (twice where sequences are few and long) and writes two results once:
    17 bytes a token in fp32 with a mask of one byte.
    """
    dtype = compute_dtype(rewards, values, bootstrap)
    advantages, returns = (torch.empty(values.shape, dtype=dtype, device=values.device) for _ in range(2))
    tokens = Tokens(flat(rewards), flat(values), None, None, flags(mask))
    sequences = Sequences(None, flat(bootstrap), flat(lams), flat(cu_seqlens))
    batch = len(values) if cu_seqlens is None else len(cu_seqlens) - 1
    launch(Outputs(advantages, returns, None), tokens, sequences, batch, gamma, lam)
    return advantages, returns


def aot_cases() -> Iterator[Case]:
    """Many sequences, padded and packed, with the longest and the shortest block; and few long ones."""
    for label, batch, length, is_packed, dtype in (
        ("4096x1000", 4096, 1000, False, torch.float32),
        ("4096x1000", 4096, 1000, False, torch.float64),
        ("4096x64 packed", 4096, 64, True, torch.float32),
        ("8x131072", 8, 131072, False, torch.float32),
        ("8x131072 packed", 8, 131072, True, torch.bfloat16),
    ):
        tokens, per_sequence, cu_seqlens = aot_batch(batch, length, is_packed, dtype)
        mask = torch.empty_like(tokens, dtype=torch.bool)
        yield Case(
            f"{label} {str(dtype).removeprefix('torch.')}",
            gae,
            (tokens, tokens, mask, per_sequence, None, cu_seqlens, 0.99, 0.95),
        )
