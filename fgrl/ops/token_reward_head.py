"""Public op: the token reward head."""

from __future__ import annotations

from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks


def token_reward_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
) -> Tensor:
    """One scalar (or K) per token: `r_t = w . h_t + b`, accumulated in fp32 (Xu et al., arXiv 2406.02756).

    Args:
        hidden: `[..., D]`, fp32, bf16 or fp16 (fp64 for oracles); rows may be strided.
        weight: `[D]` for one reward a token, or `[K, D]`.
        bias: 0-d or `[1]` for weight `[D]`; `[K]` for weight `[K, D]`.
        norm_weight: `[D]`, puts the model's final RMSNorm in front of the head,
            `h / sqrt(mean(h^2) + norm_eps) * norm_weight`.
        norm_eps: its epsilon, greater than 0.

    Returns:
        `[...]` for weight `[D]`, `[..., K]` for weight `[K, D]`; fp32 (fp64 when an input is fp64). Differentiable in
        hidden, weight, bias and norm_weight.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, in one sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> fgrl.ops.token_reward_head(torch.eye(2), torch.tensor([1.0, -2.0]), torch.tensor(0.5))
        tensor([ 1.5000, -1.5000])
    """
    _checks.check_float("hidden", hidden)
    if hidden.ndim < 1:
        raise ValueError("hidden has shape []; it must be [..., D]")
    _checks.check_float("weight", weight)
    width = hidden.shape[-1]
    if weight.ndim not in (1, 2) or weight.shape[-1] != width:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be [{width}] or [K, {width}] like hidden")
    _checks.check_device("weight", weight, "hidden", hidden)
    if bias is not None:
        _checks.check_float("bias", bias)
        allowed = [(), (1,)] if weight.ndim == 1 else [(weight.shape[0],)]
        if tuple(bias.shape) not in allowed:
            wanted = "[] or [1]" if weight.ndim == 1 else f"[{weight.shape[0]}]"
            raise ValueError(f"bias has shape {list(bias.shape)}; it must be {wanted} like weight")
        _checks.check_device("bias", bias, "hidden", hidden)
    if norm_weight is not None:
        _checks.check_float("norm_weight", norm_weight)
        _checks.check_shape("norm_weight", norm_weight, (width,), "hidden's last dimension")
        _checks.check_device("norm_weight", norm_weight, "hidden", hidden)
    _checks.check_positive("norm_eps", norm_eps)
    run = backend.only_reference("token_reward_head", hidden.device)
    return run(hidden, weight, bias, norm_weight=norm_weight, norm_eps=norm_eps)
