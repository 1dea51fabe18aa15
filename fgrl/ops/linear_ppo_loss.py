"""Public op: the PPO loss straight from hidden states and the LM head."""

from __future__ import annotations

from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops.linear_logprobs import check_linear_inputs
from fgrl.types import LinearPPOLoss, PPOLossConfig


def linear_ppo_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ref_logprobs: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    config: PPOLossConfig = PPOLossConfig(),
) -> LinearPPOLoss:
    """`linear_logprobs` followed by `ppo_loss`, with the same numbers; entropy comes from the same pass.

    Args:
        hidden: `[N, D]` or `[B, T, D]`; the state at the position that *predicts* the target.
        weight: `[V, D]`, the LM head.
        targets: `[N]` or `[B, T]`, int32 or int64; any value is allowed where the mask is false.
        old_logprobs: shape of `targets`; None is on-policy.
        advantages: shape of `targets`.
        mask: shape of `targets`, bool or 0/1. Rows with mask 0 are never multiplied.
        bias: `[V]`.
        temperature: the sampling temperature, greater than 0; applied after the soft-cap.
        softcap: logit soft-cap, greater than 0.
        ref_logprobs: shape of `targets`; needed when `config.kl_coef` is not 0.
        rollout_logprobs: shape of `targets`, as the inference engine reported them.
        normalizer: denominator of the aggregation over the *global* batch. Default: the local count.
        cu_seqlens: `[B + 1]` offsets of packed `[N]` tokens; the seq-* aggregations need it for packed tokens.
        config: the options of the loss.

    Returns:
        `LinearPPOLoss(loss, stats, logprobs)`: see `ppo_loss`; `logprobs` without gradient, in the shape of `targets`.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, a target outside the vocabulary included, in one
            sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> hidden = torch.zeros(2, 3, requires_grad=True)
        >>> result = fgrl.ops.linear_ppo_loss(hidden, torch.eye(8, 3), torch.tensor([1, 7]), None, torch.ones(2))
        >>> result.loss, result.logprobs
        (tensor(-1., grad_fn=...), tensor([-2.0794, -2.0794]))
    """
    check_linear_inputs(hidden, weight, targets, bias, temperature, softcap, mask, None)
    _checks.check_config(config)
    _checks.check_float("advantages", advantages)
    for name, tensor in (
        ("old_logprobs", old_logprobs),
        ("advantages", advantages),
        ("ref_logprobs", ref_logprobs),
        ("rollout_logprobs", rollout_logprobs),
    ):
        if tensor is not None:
            _checks.check_float(name, tensor)
            _checks.check_shape(name, tensor, targets.shape, "targets")
            _checks.check_device(name, tensor, "targets", targets)
    _checks.check_aggregation(config.aggregation, "targets", targets, cu_seqlens)
    _checks.check_normalizer(normalizer)
    if config.kl_coef and ref_logprobs is None:
        raise ValueError(f"ref_logprobs is None; config.kl_coef {config.kl_coef} needs it")
    run = backend.only_reference("linear_ppo_loss", hidden.device)
    return run(
        hidden,
        weight,
        targets,
        old_logprobs,
        advantages,
        mask,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        ref_logprobs=ref_logprobs,
        rollout_logprobs=rollout_logprobs,
        normalizer=normalizer,
        cu_seqlens=cu_seqlens,
        config=config,
    )
