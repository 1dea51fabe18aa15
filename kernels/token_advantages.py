"""Reward shaping, KL penalty and advantages in one; the kernels are those of `_advantages.py`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fgrl.kernels._advantages import Outputs, Sequences, Shaping, Tokens, aot_batch, launch
from fgrl.kernels._launch import Case, flags, flat
from fgrl.ops._library import KL_ESTIMATORS
from fgrl.types import compute_dtype


def token_advantages(
    token_rewards: Tensor | None,
    values: Tensor,
    logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    mask: Tensor | None,
    sequence_rewards: Tensor | None,
    bootstrap: Tensor | None,
    lams: Tensor | None,
    cu_seqlens: Tensor | None,
    reward_scale: float,
    reward_low: float,
    reward_high: float,
    kl_coef: float,
    kl_estimator: int,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """R_t = reward_scale * clip(r_t) - kl_coef * KL_t,   the sequence's reward on its last valid token,   then `gae`

    Reads token rewards, values, both log-probabilities and the mask once (twice where sequences are few and long) and
    writes advantages, returns and KL once: 29 bytes a token in fp32 with a mask of one byte. The moments are added up
    on the way, a partial sum a program.
    """
    dtype = compute_dtype(token_rewards, values, logprobs, ref_logprobs, sequence_rewards, bootstrap)
    advantages, returns, kl = (torch.empty(values.shape, dtype=dtype, device=values.device) for _ in range(3))
    has_kl = logprobs is not None and ref_logprobs is not None
    if not has_kl:
        kl.zero_()
    tokens = Tokens(flat(token_rewards), flat(values), flat(logprobs), flat(ref_logprobs), flags(mask))
    sequences = Sequences(flat(sequence_rewards), flat(bootstrap), flat(lams), flat(cu_seqlens))
    batch = len(values) if cu_seqlens is None else len(cu_seqlens) - 1
    shaping = Shaping(reward_scale, reward_low, reward_high, kl_coef, kl_estimator)
    outputs = Outputs(advantages, returns, kl if has_kl else None)
    moments = launch(outputs, tokens, sequences, batch, gamma, lam, shaping, has_moments=True)
    return advantages, returns, kl, moments


def aot_cases() -> Iterator[Case]:
    """Many sequences and few long ones, with k3, which takes the most, and everything optional; and with nothing."""
    k3 = KL_ESTIMATORS.index("k3")
    for label, batch, length, is_packed, dtype in (
        ("4096x1000", 4096, 1000, False, torch.float32),
        ("4096x1000", 4096, 1000, False, torch.float64),
        ("4096x64 packed", 4096, 64, True, torch.float32),
        ("8x131072 packed", 8, 131072, True, torch.bfloat16),
    ):
        tokens, per_sequence, cu_seqlens = aot_batch(batch, length, is_packed, dtype)
        mask = torch.empty_like(tokens, dtype=torch.bool)
        given = (tokens, tokens, tokens, tokens, mask, per_sequence, per_sequence, per_sequence, cu_seqlens)
        numbers = (1.0, -5.0, 5.0, 0.1, k3, 0.99, 1.0)
        yield Case(f"{label} {str(dtype).removeprefix('torch.')}", token_advantages, (*given, *numbers))
    rewards_only = (None, tokens, None, None, None, per_sequence, None, None, cu_seqlens)
    yield Case("sequence rewards alone", token_advantages, (*rewards_only, *numbers))
