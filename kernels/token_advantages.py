"""Reward shaping, KL penalty and advantages in one; the kernels are those of `_advantages.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from fgrl.kernels._advantages import Outputs, Sequences, Shaping, Split, Tokens, aot_batches, launch
from fgrl.kernels._launch import Case
from fgrl.types import KLEstimator, compute_dtype


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
    *,
    split: Split = Split(),  # noqa: B008
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """R_t = reward_scale * clip(r_t) - kl_coef * KL_t,   the sequence's reward on its last valid token,   then `gae`

    Reads token rewards, values, both log-probabilities and the mask once (twice where sequences are few and long) and
    writes advantages, returns and KL once: 29 bytes a token in fp32 with a mask of one byte. The moments are added up
    on the way, a partial sum a program.
    """
    dtype = compute_dtype(token_rewards, values, logprobs, ref_logprobs, sequence_rewards, bootstrap)
    advantages, returns, kl = (torch.empty(values.shape, dtype=dtype, device=values.device) for _ in range(3))
    has_kl = logprobs is not None and ref_logprobs is not None
    if has_kl:
        tokens = Tokens(token_rewards, values, logprobs, ref_logprobs, mask)
    else:
        tokens = Tokens(token_rewards, values, None, None, mask)
        kl.zero_()
    sequences = Sequences(sequence_rewards, bootstrap, lams, cu_seqlens)
    shaping = Shaping(reward_scale, reward_low, reward_high, kl_coef, kl_estimator)
    outputs = Outputs(advantages, returns, kl if has_kl else None)
    moments = launch(outputs, tokens, sequences, gamma, lam, shaping, has_moments=True, split=split)
    return advantages, returns, kl, moments


def aot_cases() -> Iterator[Case]:
    """Each batch with everything optional and k3, which takes the most; and one with scores alone."""
    k3 = get_args(KLEstimator).index("k3")
    numbers = (0.5, -5.0, 5.0, 0.1, k3, 0.99, 1.0)
    for label, tokens, mask, per_sequence, cu_seqlens in aot_batches():
        given = (tokens, tokens, tokens, tokens, mask, per_sequence, per_sequence, per_sequence, cu_seqlens)
        yield Case(label, token_advantages, (*given, *numbers))
    scores = (None, tokens, None, None, None, per_sequence, None, None, cu_seqlens)
    yield Case(f"{label}, scores alone", token_advantages, (*scores, *numbers))
