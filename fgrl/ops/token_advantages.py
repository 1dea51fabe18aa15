"""Public op: reward shaping, KL penalty and GAE in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._library import KL_ESTIMATORS, LIBRARY, differentiate_through, launch_with_triton
from fgrl.types import KLEstimator, TokenAdvantages, compute_dtype, is_number

LIBRARY.define(
    "token_advantages(Tensor? token_rewards, Tensor values, Tensor? logprobs, Tensor? ref_logprobs, Tensor? mask, "
    "Tensor? sequence_rewards, Tensor? bootstrap, Tensor? lams, Tensor? cu_seqlens, float reward_scale, "
    "float reward_low, float reward_high, float kl_coef, int kl_estimator, float gamma, float lam) "
    "-> (Tensor advantages, Tensor returns, Tensor kl, Tensor moments)"
)
launch_with_triton("token_advantages", "token_advantages")


def token_advantages(
    token_rewards: Tensor | None,
    values: Tensor,
    logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    mask: Tensor | None = None,
    *,
    sequence_rewards: Tensor | None = None,
    reward_scale: float = 1.0,
    reward_clip: float | Sequence[float] | None = None,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k1",
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    bootstrap: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> TokenAdvantages:
    """Advantages of a rollout from its token rewards (Xu et al., arXiv 2406.02756, section 3).

    `R_t = reward_scale * clip(r_t) - kl_coef * KL_t`, a sequence's score added on its last *valid* token, then `gae`.
    With `token_rewards=None` and `sequence_rewards` this is ordinary PPO.

    Args:
        token_rewards: `[B, T]`, or packed `[N]` with `cu_seqlens`; any floating dtype. None: 0 at each token.
        values: same shape. Entry `t` is V of the state *before* token `t`.
        logprobs: same shape, the behaviour policy's log-probability (nats) of each token; None leaves out the KL.
        ref_logprobs: same shape, the reference model's; None leaves out the KL.
        mask: same shape, bool or 0/1: the tokens the policy produced; may have holes. Default: all.
        sequence_rewards: `[B]`, added as they are on the last valid token; lost where a sequence has none.
        reward_scale: factor of the clipped token rewards.
        reward_clip: token rewards are clipped to `[-reward_clip, reward_clip]`, or to those of a pair `(low, high)`.
        kl_coef: weight of the KL penalty, at least 0.
        kl_estimator: "k1", "k2", "k3" or "abs"; a "+" makes no difference here, where nothing is differentiated.
        gamma: discount, in [0, 1].
        lam: trace decay, in [0, 1]: a number, or a tensor `[B]`.
        bootstrap: `[B]`, V of the state after the last valid token. Default: 0.
        cu_seqlens: `[B + 1]` int32 or int64 offsets of packed sequences, from 0 to N.

    Returns:
        `TokenAdvantages(advantages, returns, kl, moments)`: the first three in the shape of `values`, fp32 (fp64 when
        an input is fp64), exactly 0 where the mask is false; `moments` float64 `[3]` for `whiten`.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, in one sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> logprobs = torch.tensor([[-1.0, -1.0]])
        >>> result = fgrl.ops.token_advantages(
        ...     torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2), logprobs, logprobs - 1, kl_coef=0.5, lam=1.0
        ... )
        >>> result.advantages
        tensor([[0.0000, 0.5000]])
    """
    _checks.check_optional_floats(
        "values", values, token_rewards=token_rewards, logprobs=logprobs, ref_logprobs=ref_logprobs
    )
    batch = _checks.check_sequences("values", values, cu_seqlens)
    _checks.check_mask("mask", mask, "values", values)
    _checks.check_per_sequence("sequence_rewards", sequence_rewards, batch, "values", values)
    _checks.check_finite("reward_scale", reward_scale)
    _check_reward_clip(reward_clip)
    _checks.check_finite("kl_coef", kl_coef)
    if kl_coef < 0:
        raise ValueError(f"kl_coef is {kl_coef}; it must be at least 0")
    if kl_coef > 0 and (logprobs is None or ref_logprobs is None):
        raise ValueError(f"kl_coef is {kl_coef} and logprobs or ref_logprobs is None; both must be given")
    _checks.check_choice("kl_estimator", kl_estimator, get_args(KLEstimator))
    _checks.check_unit_interval("gamma", gamma)
    _checks.check_lam(lam, batch, "values", values)
    _checks.check_per_sequence("bootstrap", bootstrap, batch, "values", values)
    if reward_clip is None:
        reward_clip = math.inf
    low, high = reward_clip if isinstance(reward_clip, Sequence) else (-reward_clip, reward_clip)
    lams, lam = (lam, 1.0) if isinstance(lam, Tensor) else (None, float(lam))
    arguments = (
        token_rewards,
        values,
        logprobs,
        ref_logprobs,
        mask,
        sequence_rewards,
        bootstrap,
        lams,
        cu_seqlens,
        float(reward_scale),
        float(low),
        float(high),
        float(kl_coef),
        KL_ESTIMATORS.index(kl_estimator),
        float(gamma),
        lam,
    )
    if backend.resolve("token_advantages", values.device) == "reference":
        return _plain_token_advantages(*arguments)
    return TokenAdvantages(*torch.ops.fgrl.token_advantages(*arguments))


def _check_reward_clip(reward_clip: float | Sequence[float] | None) -> None:
    if isinstance(reward_clip, Sequence):
        is_pair = len(reward_clip) == 2 and all(map(is_number, reward_clip))
        if not is_pair or not reward_clip[0] <= reward_clip[1]:
            raise ValueError(f"reward_clip is {reward_clip}; a pair must be (low, high) with low <= high")
    elif reward_clip is not None and not (is_number(reward_clip) and reward_clip > 0):
        raise ValueError(f"reward_clip is {reward_clip!r}; it must be greater than 0, or a pair (low, high)")


@torch.library.register_fake("fgrl::token_advantages", lib=LIBRARY)
def _token_advantages_fake(
    token_rewards: Tensor | None,
    values: Tensor,
    logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    mask: Tensor | None,
    sequence_rewards: Tensor | None,
    bootstrap: Tensor | None,
    *_: Any,
) -> TokenAdvantages:
    dtype = compute_dtype(token_rewards, values, logprobs, ref_logprobs, sequence_rewards, bootstrap)
    advantages, returns, kl = (values.new_empty(values.shape, dtype=dtype) for _ in range(3))
    return TokenAdvantages(advantages, returns, kl, values.new_empty(3, dtype=torch.float64))


def _plain_token_advantages(
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
) -> TokenAdvantages:
    """The reference, called as the operator is."""
    run = backend.reference("token_advantages", values.device)
    return run(
        token_rewards,
        values,
        logprobs,
        ref_logprobs,
        mask,
        sequence_rewards=sequence_rewards,
        reward_scale=reward_scale,
        reward_clip=(reward_low, reward_high),
        kl_coef=kl_coef,
        kl_estimator=KL_ESTIMATORS[kl_estimator],
        gamma=gamma,
        lam=lam if lams is None else lams,
        bootstrap=bootstrap,
        cu_seqlens=cu_seqlens,
    )


differentiate_through("token_advantages", _plain_token_advantages)
