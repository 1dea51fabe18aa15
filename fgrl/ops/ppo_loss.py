"""Public op: the PPO loss."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._aggregation import AGGREGATIONS, or_inf, split_normalizer, wants_gradient
from fgrl.ops._library import KL_ESTIMATORS, LIBRARY, differentiate_with_outputs, launch_with_triton
from fgrl.types import ImportanceLevel, PolicyLoss, PPOLoss, PPOLossConfig, compute_dtype

STATS = (
    "policy_loss",
    "kl",
    "entropy",
    "clip_fraction",
    "clip_fraction_lower",
    "approx_kl",
    "ratio_mean",
    "ratio_max",
    "tokens",
)

# Travel as positions; csrc/ and kernels/ count in the same order.
POLICY_LOSSES: tuple[str, ...] = get_args(PolicyLoss)
IMPORTANCE_LEVELS: tuple[str, ...] = get_args(ImportanceLevel)

OPTIONS = (
    "float clip_low, float clip_high, float dual_clip, float kl_coef, int kl_estimator, float entropy_coef, "
    "float importance_cap, int policy_loss, float tau_positive, float tau_negative, float importance_floor, "
    "int importance_level, bool importance_mask"
)
"""What the operators of the losses take of a `PPOLossConfig`, after its aggregation."""

LIBRARY.define(
    "ppo_loss(Tensor logprobs, Tensor? old_logprobs, Tensor advantages, Tensor? mask, Tensor? ref_logprobs, "
    "Tensor? entropy, Tensor? rollout_logprobs, Tensor? normalizer, Tensor? cu_seqlens, float denominator, "
    f"int aggregation, {OPTIONS}, bool grad_logprobs, bool grad_entropy) "
    "-> (Tensor loss, Tensor stats, Tensor scale, Tensor logprobs_grad, Tensor entropy_grad)"
)
launch_with_triton("ppo_loss", "ppo_loss")


def ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    ref_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    config: PPOLossConfig = PPOLossConfig(),
) -> PPOLoss:
    """PPO loss with KL and entropy terms (Schulman et al., arXiv 1707.06347, eq. 7), per token, and its relatives.

    The token's loss is `w * l + kl_coef * KL - entropy_coef * entropy`, with `ratio = exp(clamp(logp - old, -20, 20))`,
    `l = max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high))`, bounded by `-A * dual_clip` where `A < 0`,
    and `w = min(exp(clamp(old - rollout, -20, 20)), importance_cap)`. `config.loss` puts another policy loss in the
    place of `l`: GSPO, GMPO, CISPO, SAPO or REINFORCE; see `PPOLossConfig`.

    All of them are one pass over the tokens that leaves the gradient behind; where tokens depend on their sequence
    ("gspo", "gspo-token", "gmpo", importance levels other than "token") each sequence is read twice.

    Args:
        logprobs: `[B, T]`, or packed `[N]`; log-probability (nats) of each token under the policy being trained.
        old_logprobs: same shape, under the policy at the start of the update; None is on-policy: the ratio is 1 and
            has a gradient.
        advantages: same shape, from `gae` or `token_advantages`; taken as constants.
        mask: same shape, bool or 0/1: the tokens that count; may have holes. Default: all.
        ref_logprobs: same shape, under the reference model; needed when `config.kl_coef` is not 0.
        entropy: same shape, the policy's entropy at each token; needed when `config.entropy_coef` is not 0.
        rollout_logprobs: same shape, as the inference engine reported them: gives the importance weight `w`.
        normalizer: denominator of the aggregation over the *global* batch (tokens, or sequences for seq-*), so that
            accumulation and data parallelism give the gradient of one big batch. Default: the local count.
        cu_seqlens: `[B + 1]` offsets of packed sequences; packed tokens need it for the seq-* aggregations and wherever
            tokens depend on their sequence.
        config: the options.

    Returns:
        `PPOLoss(loss, stats)`: a 0-d loss, and 0-d tensors on the same device. `policy_loss`, `kl` and `entropy` are
        the three parts before their coefficients, aggregated like the loss; `clip_fraction`, `clip_fraction_lower`
        (dual clip), `approx_kl` (mean of `old - logp`, clamped as in the ratio), `ratio_mean` and `ratio_max` (of the
        sequence's ratio in "gspo", "gspo-token" and "gmpo") are over the local valid tokens, `tokens` their number. A
        fully masked batch gives loss 0 and zero gradients.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, in one sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> loss, stats = fgrl.ops.ppo_loss(logprobs, torch.tensor([[-1.0, -3.0]]), torch.tensor([[1.0, 1.0]]))
        >>> loss.backward()
        >>> loss.item(), stats["clip_fraction"].item(), logprobs.grad
        (-1.100000023841858, 0.5, tensor([[-0.5000,  0.0000]]))
    """
    _checks.check_config(config)
    _checks.check_floats("logprobs", logprobs, advantages=advantages)
    _checks.check_optional_floats(
        "logprobs",
        logprobs,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        entropy=entropy,
        rollout_logprobs=rollout_logprobs,
    )
    _checks.check_mask("mask", mask, "logprobs", logprobs)
    _checks.check_loss_layout(config, "logprobs", logprobs, cu_seqlens)
    _checks.check_normalizer(normalizer)
    if config.kl_coef and ref_logprobs is None:
        raise ValueError(f"ref_logprobs is None; it must be given where config.kl_coef is {config.kl_coef}")
    if config.entropy_coef and entropy is None:
        raise ValueError(f"entropy is None; it must be given where config.entropy_coef is {config.entropy_coef}")
    if backend.resolve("ppo_loss", logprobs.device) == "reference":
        return backend.reference("ppo_loss", logprobs.device)(
            logprobs,
            old_logprobs,
            advantages,
            mask,
            ref_logprobs=ref_logprobs,
            entropy=entropy,
            rollout_logprobs=rollout_logprobs,
            normalizer=normalizer,
            cu_seqlens=cu_seqlens,
            config=config,
        )
    divisor, denominator = split_normalizer(normalizer, logprobs.device)
    loss, stats, *_ = torch.ops.fgrl.ppo_loss(
        logprobs,
        old_logprobs,
        advantages,
        mask,
        ref_logprobs,
        entropy,
        rollout_logprobs,
        divisor,
        cu_seqlens,
        denominator,
        *scalars(config),
        wants_gradient(logprobs),
        bool(config.entropy_coef) and entropy is not None and wants_gradient(entropy),
    )
    return PPOLoss(loss, dict(zip(STATS, stats.unbind(), strict=True)))


def scalars(config: PPOLossConfig) -> tuple[Any, ...]:
    """The options as the operator takes them, from `aggregation` on."""
    return (
        AGGREGATIONS.index(config.aggregation),
        float(config.clip_low),
        float(config.clip_high),
        or_inf(config.dual_clip),
        float(config.kl_coef),
        KL_ESTIMATORS.index(config.kl_estimator),
        float(config.entropy_coef),
        or_inf(config.importance_cap),
        POLICY_LOSSES.index(config.loss),
        float(config.tau_positive),
        float(config.tau_negative),
        0.0 if config.importance_floor is None else float(config.importance_floor),
        IMPORTANCE_LEVELS.index(config.importance_level),
        config.importance_mode == "mask",
    )


@torch.library.register_fake("fgrl::ppo_loss", lib=LIBRARY)
def _ppo_loss_fake(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor | None,
    ref_logprobs: Tensor | None,
    entropy: Tensor | None,
    rollout_logprobs: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    dtype = compute_dtype(logprobs, old_logprobs, advantages, ref_logprobs, entropy, rollout_logprobs)
    return (
        logprobs.new_empty((), dtype=dtype),
        logprobs.new_empty(len(STATS), dtype=dtype),
        logprobs.new_empty((), dtype=dtype),
        *(logprobs.new_empty(logprobs.shape if wanted else 0, dtype=dtype) for wanted in rest[-2:]),
    )


differentiate_with_outputs("ppo_loss", "logprobs", "entropy")
