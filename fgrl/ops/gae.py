"""Public op: generalised advantage estimation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._library import LIBRARY, differentiate_through, launch_with_triton
from fgrl.types import GAE, compute_dtype

LIBRARY.define(
    "gae(Tensor rewards, Tensor values, Tensor? mask, Tensor? bootstrap, Tensor? lams, Tensor? cu_seqlens, "
    "float gamma, float lam) -> (Tensor advantages, Tensor returns)"
)
launch_with_triton("gae", "gae")


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> GAE:
    """Generalised advantage estimation over the valid tokens (Schulman et al., arXiv 1506.02438, eq. 16).

    `delta_t = r_t + gamma * V_t' - V_t` and `A_t = delta_t + gamma * lam * A_t'`, where `t'` is the next *valid*
    token: a hole in the mask (a tool's output, say) is skipped, it neither decays nor ends the recursion.

    Args:
        rewards: `[B, T]`, or packed `[N]` with `cu_seqlens`; any floating dtype. Entry `t` is for emitting token `t`.
        values: shape of `rewards`. Entry `t` is V of the state *before* token `t`.
        mask: shape of `rewards`, bool or 0/1: the tokens the policy produced. Default: all.
        gamma: discount, in [0, 1].
        lam: trace decay, in [0, 1]: a number, or a tensor `[B]`, one per sequence.
        bootstrap: `[B]`, V of the state after the last valid token: 0 for finished sequences, V for truncated ones.
            Default: 0.
        cu_seqlens: `[B + 1]` int32 or int64 offsets of packed sequences, from 0 to N.

    Returns:
        `GAE(advantages, returns)` with `returns = advantages + values`, in the shape of `rewards`, fp32 (fp64 when an
        input is fp64), exactly 0 where the mask is false. Not whitened: see `whiten`.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, in one sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> rewards, values = torch.tensor([[0.0, 9.0, 1.0]]), torch.tensor([[0.5, 9.0, 0.5]])
        >>> fgrl.ops.gae(rewards, values, torch.tensor([[1, 0, 1]]), lam=1.0).advantages
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    _checks.check_floats("rewards", rewards, values=values)
    batch = _checks.check_sequences("rewards", rewards, cu_seqlens)
    _checks.check_mask("mask", mask, "rewards", rewards)
    _checks.check_unit_interval("gamma", gamma)
    _checks.check_lam(lam, batch, "rewards", rewards)
    _checks.check_per_sequence("bootstrap", bootstrap, batch, "rewards", rewards)
    lams, lam = (lam, 1.0) if isinstance(lam, Tensor) else (None, float(lam))
    arguments = (rewards, values, mask, bootstrap, lams, cu_seqlens, float(gamma), lam)
    if backend.resolve("gae", rewards.device) == "reference":
        return _plain_gae(*arguments)
    return GAE(*torch.ops.fgrl.gae(*arguments))


@torch.library.register_fake("fgrl::gae", lib=LIBRARY)
def _gae_fake(rewards: Tensor, values: Tensor, mask: Tensor | None, bootstrap: Tensor | None, *_: Any) -> GAE:
    dtype = compute_dtype(rewards, values, bootstrap)
    return GAE(rewards.new_empty(rewards.shape, dtype=dtype), rewards.new_empty(rewards.shape, dtype=dtype))


def _plain_gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor | None,
    bootstrap: Tensor | None,
    lams: Tensor | None,
    cu_seqlens: Tensor | None,
    gamma: float,
    lam: float,
) -> GAE:
    """The reference, called as the operator is."""
    run = backend.reference("gae", rewards.device)
    lam_or_lams = lam if lams is None else lams
    return run(rewards, values, mask, gamma=gamma, lam=lam_or_lams, bootstrap=bootstrap, cu_seqlens=cu_seqlens)


differentiate_through("gae", _plain_gae)
