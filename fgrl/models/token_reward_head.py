"""The token reward head as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgrl.ops import token_reward_head


class TokenRewardHead(nn.Module):
    """One reward (or several) a token, `r_t = w . h_t + b`: `fgrl.ops.token_reward_head` with its parameters.

    For a model of one's own; needs torch only. Weight and bias of a new head are 0, and so are its rewards.

    Args:
        hidden_size: D, the width of the hidden states.
        num_rewards: K rewards a token; None for a single one without a dimension of its own.
        bias: whether there is a bias.
        norm_eps: puts an RMSNorm with this epsilon in front, fused into the head. Default: none.
        device: of the parameters.
        dtype: of the parameters; need not be that of the hidden states.

    Attributes:
        weight: `[D]`, or `[K, D]`.
        bias: `[]`, or `[K]`; None without.
        norm_weight: `[D]`; None without a norm. Copy that of the model's final norm into it to take its place.

    Raises:
        ValueError: a size or an epsilon that is not positive.

    Example:
        >>> import torch, fgrl
        >>> head = fgrl.TokenRewardHead(16, norm_eps=1e-6)
        >>> head(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5])
    """

    bias: nn.Parameter | None
    norm_weight: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        num_rewards: int | None = None,
        *,
        bias: bool = True,
        norm_eps: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("hidden_size", hidden_size), ("num_rewards", num_rewards), ("norm_eps", norm_eps)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0")
        heads = () if num_rewards is None else (num_rewards,)
        self.hidden_size, self.num_rewards, self.norm_eps = hidden_size, num_rewards, norm_eps

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight = parameter(*heads, hidden_size)
        self.register_parameter("bias", parameter(*heads) if bias else None)
        self.register_parameter("norm_weight", None if norm_eps is None else parameter(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight and bias 0, norm weight 1."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.norm_weight is not None:
            nn.init.ones_(self.norm_weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden `[..., D]`, any float dtype -> rewards `[...]`, or `[..., K]`, fp32 (fp64 when an input is fp64)."""
        return token_reward_head(
            hidden, self.weight, self.bias, norm_weight=self.norm_weight, norm_eps=self.norm_eps or 1e-6
        )

    def extra_repr(self) -> str:
        return (
            f"hidden_size={self.hidden_size}, num_rewards={self.num_rewards}, bias={self.bias is not None}, "
            f"norm_eps={self.norm_eps}"
        )
