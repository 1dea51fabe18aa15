"""Result types, option records and the dtype rule that ops, kernels and references share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Aggregation = Literal["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean"]
Divergence = Literal["forward", "reverse", "jsd"]
Tail = Literal["bucket", "renormalize", "ignore"]
TAIL_FLOOR = 1e-6  # of a teacher's probability mass: less is rounding of log-probabilities
KLEstimator = Literal["k1", "k2", "k3", "abs", "k1+", "k2+", "k3+", "abs+"]
GroupBaseline = Literal["mean", "leave-one-out", "none"]
GroupScale = Literal["group", "batch", "none"]


class GAE(NamedTuple):
    """Generalised advantage estimates. Both fields have the shape of `rewards`, fp32 (fp64 for fp64 input)."""

    advantages: Tensor
    returns: Tensor


class TokenAdvantages(NamedTuple):
    """What PPO needs of a rollout: `advantages`, `returns` and `kl` of one shape, and `moments`.

    `moments` is float64 `[3]`: count, sum and sum of squares of the valid advantages, for `whiten`.
    """

    advantages: Tensor
    returns: Tensor
    kl: Tensor
    moments: Tensor


class EditPreferenceLoss(NamedTuple):
    """`loss`: 0-d, the mean over pairs. `margins`: `[B]`, chosen minus rejected score of each pair, no gradient."""

    loss: Tensor
    margins: Tensor


class PPOLoss(NamedTuple):
    """`loss`: 0-d with gradient. `stats`: 0-d tensors without gradient, on the device of the loss."""

    loss: Tensor
    stats: dict[str, Tensor]


class ValueLoss(NamedTuple):
    """`loss`: 0-d with gradient. `stats`: 0-d tensors without gradient, on the device of the loss."""

    loss: Tensor
    stats: dict[str, Tensor]


class LinearPPOLoss(NamedTuple):
    """`PPOLoss` with the policy's `logprobs` (fp32, shape of `targets`, no gradient) for logging."""

    loss: Tensor
    stats: dict[str, Tensor]
    logprobs: Tensor


class LinearKL(NamedTuple):
    """`loss`: 0-d with gradient. `kl`: the divergence of each token, fp32, without gradient, for logging."""

    loss: Tensor
    kl: Tensor


@dataclass(frozen=True)
class PPOLossConfig:
    """Options of `ppo_loss` and `linear_ppo_loss`.

    Args:
        clip_low: the ratio is clipped at `1 - clip_low`, in [0, 1].
        clip_high: the ratio is clipped at `1 + clip_high`, at least 0. Larger than `clip_low` is "clip-higher"
            (DAPO, arXiv 2503.14476).
        dual_clip: upper bound `-A * dual_clip` of the loss of tokens with a negative advantage (arXiv 1912.09729),
            greater than 1; None for no bound.
        kl_coef: weight of the KL term against `ref_logprobs`, at least 0.
        kl_estimator: "k1", "k2", "k3" or "abs" (http://joschu.net/blog/kl-approx.html), differentiated as written.
            As a loss that is right for k2 only: k1's gradient has mean 0, k3's and "abs"'s are biased. With a "+" the
            value stays and the gradient is k2's, whose expectation is the gradient of the KL; off-policy that gradient
            carries the ratio (clamped as in the loss), because the samples are the old policy's.
        entropy_coef: weight of the entropy bonus.
        importance_cap: upper bound of the rollout importance weight (truncated importance sampling), greater than 0;
            None for no bound.
        aggregation: "token-mean", "token-sum", "seq-mean-token-sum" or "seq-mean-token-mean".

    Raises:
        ValueError: an option outside its range.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3"
    entropy_coef: float = 0.0
    importance_cap: float | None = None
    aggregation: Aggregation = "token-mean"

    def __post_init__(self) -> None:
        if not (is_number(self.clip_low) and 0 <= self.clip_low <= 1):
            raise ValueError(f"clip_low is {self.clip_low!r}; it must be a number in [0, 1]")
        if not (is_number(self.clip_high) and 0 <= self.clip_high < math.inf):
            raise ValueError(f"clip_high is {self.clip_high!r}; it must be a finite number of at least 0")
        if self.dual_clip is not None and not (is_number(self.dual_clip) and self.dual_clip > 1):
            raise ValueError(f"dual_clip is {self.dual_clip!r}; it must be a number greater than 1, or None")
        if not (is_number(self.kl_coef) and 0 <= self.kl_coef < math.inf):
            raise ValueError(f"kl_coef is {self.kl_coef!r}; it must be a finite number of at least 0")
        if not (is_number(self.entropy_coef) and -math.inf < self.entropy_coef < math.inf):
            raise ValueError(f"entropy_coef is {self.entropy_coef!r}; it must be a finite number")
        if self.importance_cap is not None and not (is_number(self.importance_cap) and self.importance_cap > 0):
            raise ValueError(f"importance_cap is {self.importance_cap!r}; it must be a number greater than 0, or None")
        for name, options in (
            ("kl_estimator", get_args(KLEstimator)),
            ("aggregation", get_args(Aggregation)),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(options)}")


def is_number(value: object) -> bool:
    """Whether `value` is a real number of Python or NumPy. A bool is not one: where it stands for one, it is a slip."""
    return isinstance(value, Real) and not isinstance(value, bool)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """What an op computes in and returns: fp64 when any of the tensors is fp64, else fp32."""
    is_double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def is_autocast_enabled(device_type: str) -> bool:
    """Whether `torch.autocast` is on for this kind of device."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def autocast_dtype(device_type: str, *tensors: Tensor | None) -> torch.dtype | None:
    """What `torch.autocast` makes of the operands of a product of these tensors; None where it leaves them alone.

    It does so outside autocast, and fp64 always.
    """
    if not is_autocast_enabled(device_type) or compute_dtype(*tensors) == torch.float64:
        return None
    return torch.get_autocast_dtype(device_type)
