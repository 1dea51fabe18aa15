"""Public op: advantage whitening across any group of processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._library import LIBRARY, differentiate_through, launch_with_triton
from fgrl.types import compute_dtype

LIBRARY.define("moments(Tensor advantages, Tensor? mask) -> Tensor")
LIBRARY.define("whiten_tokens(Tensor advantages, Tensor? mask, Tensor moments) -> Tensor")
launch_with_triton("moments", "whiten")
launch_with_triton("whiten_tokens", "whiten")


def whiten(
    advantages: Tensor,
    mask: Tensor | None,
    moments: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Shift and scale the valid advantages to mean 0 and variance 1.

    `(A_t - mean) / sqrt(var + 1e-8)` with Bessel's correction, as verl and TRL do it. Defined for one valid token
    (0) and for none.

    Args:
        advantages: any shape, any floating dtype.
        mask: shape of `advantages`, bool or 0/1; None for all.
        moments: float64 `[3]`, count, sum and sum of squares of the tokens to take the statistics of, as
            `token_advantages` returns them; to whiten over more than this tensor, add up theirs. Default: taken here.
        group: process group over which the moments are all-reduced (three numbers). Default: no communication; pass
            `torch.distributed.group.WORLD` for all processes.

    Returns:
        Shape of `advantages`, fp32 (fp64 for fp64 input), exactly 0 where the mask is false.

    Raises:
        ValueError: a shape, dtype or device that does not fit, in one sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> fgrl.ops.whiten(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([1, 1, 0]))
        tensor([-0.7071,  0.7071,  0.0000])
    """
    _checks.check_float("advantages", advantages)
    _checks.check_mask("mask", mask, "advantages", advantages)
    if moments is not None:
        if not isinstance(moments, Tensor) or moments.shape != (3,) or moments.dtype != torch.float64:
            raise ValueError(
                f"moments is {_checks.describe(moments)}; it must be float64 of shape [3]: count, sum, sum of squares"
            )
        _checks.check_device("moments", moments, "advantages", advantages)
    if backend.resolve("whiten", advantages.device) == "reference":
        return backend.reference("whiten", advantages.device)(advantages, mask, moments, group=group)
    if moments is None:
        moments = torch.ops.fgrl.moments(advantages, mask)
    if group is not None:
        moments = moments.clone()
        dist.all_reduce(moments, group=group)
    return torch.ops.fgrl.whiten_tokens(advantages, mask, moments)


@torch.library.register_fake("fgrl::moments", lib=LIBRARY)
def _moments_fake(advantages: Tensor, mask: Tensor | None) -> Tensor:
    return advantages.new_empty(3, dtype=torch.float64)


@torch.library.register_fake("fgrl::whiten_tokens", lib=LIBRARY)
def _whiten_tokens_fake(advantages: Tensor, mask: Tensor | None, moments: Tensor) -> Tensor:
    return advantages.new_empty(advantages.shape, dtype=compute_dtype(advantages))


def _plain_moments(advantages: Tensor, mask: Tensor | None) -> tuple[Tensor]:
    return (backend.reference("advantage_moments", advantages.device)(advantages, mask),)


def _plain_whiten_tokens(advantages: Tensor, mask: Tensor | None, moments: Tensor) -> tuple[Tensor]:
    return (backend.reference("whiten", advantages.device)(advantages, mask, moments),)


differentiate_through("moments", _plain_moments)
differentiate_through("whiten_tokens", _plain_whiten_tokens)
