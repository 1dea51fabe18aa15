"""Public op: log-probabilities straight from hidden states and the LM head."""

from __future__ import annotations

import torch
from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
    return_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probability of each target token, and on request the entropy, from the last hidden states.

    `z = W h + b`, soft-capped as `softcap * tanh(z / softcap)`, divided by `temperature`; then
    `logp = z_target - logsumexp(z)`. Differentiable in hidden, weight and bias.

    Args:
        hidden: `[N, D]` or `[B, T, D]`; fp32, bf16 or fp16. The state at the position that *predicts* the target.
        weight: `[V, D]`, the LM head.
        targets: `[N]` or `[B, T]`, int32 or int64; any value is allowed where the mask is false.
        bias: `[V]`.
        temperature: the sampling temperature, greater than 0; applied after the soft-cap.
        softcap: logit soft-cap (Gemma 2: 30), greater than 0.
        mask: shape of `targets`, bool or 0/1. Rows with mask 0 are never multiplied.
        return_entropy: also return the entropy (nats) of each row's distribution.

    Returns:
        `logprobs` in the shape of `targets`, or `(logprobs, entropy)`; fp32 (fp64 when an input is fp64), exactly 0
        where the mask is false. Their negative mean is the plain cross-entropy of supervised fine-tuning.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, a target outside the vocabulary included, in one
            sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> fgrl.ops.linear_logprobs(torch.zeros(2, 3), torch.zeros(8, 3), torch.tensor([1, 7]))
        tensor([-2.0794, -2.0794])
    """
    check_linear_inputs(hidden, weight, targets, bias, temperature, softcap, mask)
    run = backend.only_reference("linear_logprobs", hidden.device)
    return run(
        hidden,
        weight,
        targets,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        mask=mask,
        return_entropy=return_entropy,
    )


def check_linear_inputs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    mask: Tensor | None,
) -> None:
    """Validation that `linear_logprobs` and `linear_ppo_loss` share."""
    _checks.check_float("hidden", hidden)
    if hidden.ndim not in (2, 3):
        raise ValueError(f"hidden has shape {list(hidden.shape)}; it must be [N, D] or [B, T, D]")
    _checks.check_float("weight", weight)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be [V, {hidden.shape[-1]}] like hidden")
    _checks.check_device("weight", weight, "hidden", hidden)
    _checks.check_shape("targets", targets, hidden.shape[:-1], "hidden without its last dimension")
    if targets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"targets has dtype {targets.dtype}; it must be int32 or int64")
    _checks.check_device("targets", targets, "hidden", hidden)
    vocabulary = weight.shape[0]
    if bias is not None:
        _checks.check_float("bias", bias)
        _checks.check_shape("bias", bias, (vocabulary,), "weight's first dimension")
        _checks.check_device("bias", bias, "hidden", hidden)
    _checks.check_positive("temperature", temperature)
    if softcap is not None:
        _checks.check_positive("softcap", softcap)
    _checks.check_mask("mask", mask, "targets", targets)
    inside = (targets >= 0) & (targets < vocabulary)
    if mask is not None:
        inside = inside | (mask == 0)
    _checks.check_values(inside.all(), f"targets has ids outside the vocabulary; they must be in [0, {vocabulary})")
