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
PolicyLoss = Literal["clip", "gspo", "gspo-token", "gmpo", "cispo", "sapo", "reinforce"]
ImportanceLevel = Literal["token", "sequence", "geometric"]
ImportanceMode = Literal["truncate", "mask"]


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

    With `r_t = exp(logp_t - old_t)` of a token, `A_t` its advantage times its importance weight, and `n` the number of
    valid tokens of its sequence, `loss` is one of

    | `loss` | token loss | source |
    |---|---|---|
    | `"clip"` | `max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))` | PPO, arXiv 1707.06347 |
    | `"gspo"` | the same with the sequence's ratio `s = (prod_t r_t)^(1/n)` for `r` | GSPO, arXiv 2507.18071 |
    | `"gspo-token"` | the same value; a token's gradient is that of its own `A` alone | GSPO-token, arXiv 2507.18071 |
    | `"gmpo"` | `-A (prod_t clip(r_t))^(1/n)`, clipped on one side, see below | GMPO, arXiv 2507.20673 |
    | `"cispo"` | `-A clip(r) logp`, the clipped ratio without gradient | CISPO, arXiv 2506.13585 |
    | `"sapo"` | `-A 4 / tau * sigmoid(tau (r - 1))` | SAPO, arXiv 2511.20347 |
    | `"reinforce"` | `-A logp`: no ratio and no clip | REINFORCE; GPG, arXiv 2504.02546 |

    "gspo" and "gspo-token" are the same where all tokens of a sequence have one advantage. In "gmpo" `log r_t` is
    clipped at `-clip_low` where the advantages of the sequence sum to less than 0, and at `clip_high` otherwise. These
    three, and the importance levels other than "token", need to know the sequences.

    Clip-Cov and KL-Cov (arXiv 2505.22617) are not among them: they draw or rank tokens by a covariance over the whole
    batch, which no single pass knows. Both are a choice of tokens, which the caller can make beforehand: Clip-Cov sets
    the advantages of the drawn tokens to 0; KL-Cov is `kl_estimator="abs"` with `ref_logprobs` equal to `old_logprobs`
    at the chosen tokens and to `logprobs` elsewhere.

    Args:
        loss: the policy loss, see above.
        clip_low: the ratio is clipped at `1 - clip_low`, in [0, 1]. GSPO's paper takes 3e-4 and 4e-4, GMPO's 0.4 twice.
            Of no effect in "sapo" and "reinforce".
        clip_high: the ratio is clipped at `1 + clip_high`, at least 0. Larger than `clip_low` is "clip-higher"
            (DAPO, arXiv 2503.14476).
        dual_clip: upper bound `-A * dual_clip` of the loss of tokens with a negative advantage (arXiv 1912.09729),
            greater than 1; None for no bound. In "gmpo" of sequences whose advantages sum to less than 0. Not for
            "cispo", "sapo" and "reinforce", in which no ratio grows without bound.
        tau_positive: SAPO's temperature for tokens with an advantage above 0.
        tau_negative: SAPO's temperature for all others; larger forgets an off-policy token sooner.
        kl_coef: weight of the KL term against `ref_logprobs`, at least 0.
        kl_estimator: "k1", "k2", "k3" or "abs" (http://joschu.net/blog/kl-approx.html), differentiated as written.
            As a loss that is right for k2 only: k1's gradient has mean 0, k3's and "abs"'s are biased. With a "+" the
            value stays and the gradient is k2's, whose expectation is the gradient of the KL; off-policy that gradient
            carries the token's ratio (clamped as in the loss), because the samples are the old policy's.
        entropy_coef: weight of the entropy bonus.
        importance_cap: upper bound of the rollout importance weight, greater than 0; None for no bound.
        importance_floor: its lower bound, greater than 0 and at most `importance_cap`; None for no bound.
        importance_level: the weight is `exp(old - rollout)` of the "token"; of the "sequence", the product over its
            tokens; or their "geometric" mean, which does not shrink or grow with length.
        importance_mode: what happens beyond a bound: "truncate" sets the weight to the bound, "mask" to 0, so that the
            token or sequence has no policy loss, but counts in the mean.
        aggregation: "token-mean", "token-sum", "seq-mean-token-sum" or "seq-mean-token-mean".

    Raises:
        ValueError: an option outside its range, or that does not go with `loss`.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3+"
    entropy_coef: float = 0.0
    importance_cap: float | None = None
    aggregation: Aggregation = "token-mean"
    loss: PolicyLoss = "clip"
    tau_positive: float = 1.0
    tau_negative: float = 1.05
    importance_floor: float | None = None
    importance_level: ImportanceLevel = "token"
    importance_mode: ImportanceMode = "truncate"

    def __post_init__(self) -> None:
        for name, options in (
            ("loss", get_args(PolicyLoss)),
            ("kl_estimator", get_args(KLEstimator)),
            ("aggregation", get_args(Aggregation)),
            ("importance_level", get_args(ImportanceLevel)),
            ("importance_mode", get_args(ImportanceMode)),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(options)}")
        if not (is_number(self.clip_low) and 0 <= self.clip_low <= 1):
            raise ValueError(f"clip_low is {self.clip_low!r}; it must be a number in [0, 1]")
        if not (is_number(self.clip_high) and 0 <= self.clip_high < math.inf):
            raise ValueError(f"clip_high is {self.clip_high!r}; it must be a finite number of at least 0")
        if self.dual_clip is not None and not (is_number(self.dual_clip) and self.dual_clip > 1):
            raise ValueError(f"dual_clip is {self.dual_clip!r}; it must be a number greater than 1, or None")
        if self.dual_clip is not None and self.loss in ("cispo", "sapo", "reinforce"):
            raise ValueError(f"dual_clip is {self.dual_clip!r}; it must be None with loss {self.loss!r}")
        for name in ("tau_positive", "tau_negative"):
            value = getattr(self, name)
            if not (is_number(value) and 0 < value < math.inf):
                raise ValueError(f"{name} is {value!r}; it must be a finite number greater than 0")
        if not (is_number(self.kl_coef) and 0 <= self.kl_coef < math.inf):
            raise ValueError(f"kl_coef is {self.kl_coef!r}; it must be a finite number of at least 0")
        if not (is_number(self.entropy_coef) and -math.inf < self.entropy_coef < math.inf):
            raise ValueError(f"entropy_coef is {self.entropy_coef!r}; it must be a finite number")
        for name in ("importance_cap", "importance_floor"):
            bound = getattr(self, name)
            if bound is not None and not (is_number(bound) and bound > 0):
                raise ValueError(f"{name} is {bound!r}; it must be a number greater than 0, or None")
        if None not in (bounds := (self.importance_floor, self.importance_cap)) and bounds[0] > bounds[1]:  # type: ignore[operator]
            raise ValueError(f"importance_floor is {bounds[0]!r}; it must be at most importance_cap {bounds[1]!r}")
        if self.importance_mode == "mask" and bounds == (None, None):
            raise ValueError("importance_mode is 'mask' without a bound; it must come with importance_cap or _floor")

    @property
    def needs_sequences(self) -> bool:
        """Whether a token's policy loss or importance weight depends on the other tokens of its sequence."""
        return self.loss in ("gspo", "gspo-token", "gmpo") or self.importance_level != "token"


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
