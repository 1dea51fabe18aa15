"""Public op: the PPO loss straight from hidden states and the LM head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._aggregation import AGGREGATIONS, split_normalizer, wants_gradient
from fgrl.ops._library import LIBRARY
from fgrl.ops._linear import (
    Chunk,
    Gradients,
    LinearOptions,
    LinearRows,
    Statistics,
    differentiate_with_saved_grads,
    fake_gradients,
    implement,
    saved_dtypes,
)
from fgrl.ops._linear_checks import check_linear_inputs, linear_options
from fgrl.ops.linear_logprobs import INPUTS
from fgrl.ops.ppo_loss import OPTIONS, POLICY_LOSSES, STATS, scalars
from fgrl.types import LinearPPOLoss, PPOLossConfig, compute_dtype

LIBRARY.define(
    f"linear_ppo_loss({INPUTS}, Tensor? old_logprobs, Tensor advantages, Tensor? ref_logprobs, "
    f"Tensor? rollout_logprobs, Tensor? normalizer, Tensor? cu_seqlens, float denominator, int aggregation, {OPTIONS}, "
    "bool[3] wants) "
    "-> (Tensor loss, Tensor stats, Tensor logprobs, Tensor hidden_grad, Tensor weight_grad, Tensor bias_grad)"
)
_LINEAR_OPTIONS = len(LinearOptions._fields)
_TOKEN_SUM = AGGREGATIONS.index("token-sum")


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
    process_group: Any = None,
    chunk_tokens: int | None = None,
) -> LinearPPOLoss:
    """`linear_logprobs` followed by `ppo_loss`, with the same numbers; entropy comes from the same pass.

    Gradients are computed along with the loss, in chunks as in `linear_logprobs`: three matrix products in all, no
    logits are kept and none are computed again. That of the head is summed in fp32 also for bf16 and fp16 weights, so
    it takes 4 bytes a weight while the forward runs (on a CPU only where there are several chunks). The backward pass
    multiplies by the gradient of the loss, in place unless `retain_graph=True` asks for another one. Inside
    `torch.autocast` operands are rounded as in `linear_logprobs`.

    Where a token's gradient depends on the log-probabilities of its whole sequence (`config.loss` "gspo", "gspo-token"
    or "gmpo", `config.importance_level` other than "token"), these are computed first and the logits of all chunks but
    the last once more: `4 - 1 / chunks` products instead of three.

    Args:
        hidden: `[N, D]` or `[B, T, D]`; the state at the position that *predicts* the target.
        weight: `[V, D]`, the LM head.
        targets: `[N]` or `[B, T]`, int32 or int64; any value is allowed where the mask is false.
        old_logprobs: shape of `targets`; None is on-policy.
        advantages: shape of `targets`.
        mask: shape of `targets`, bool or 0/1. Rows with mask 0 are never multiplied. Finding the others makes the
            host wait for the GPU, once; rows that are packed already and no mask do not.
        bias: `[V]`.
        temperature: the sampling temperature, greater than 0; applied after the soft-cap.
        softcap: logit soft-cap, greater than 0.
        ref_logprobs: shape of `targets`; needed when `config.kl_coef` is not 0.
        rollout_logprobs: shape of `targets`, as the inference engine reported them.
        normalizer: denominator of the aggregation over the *global* batch. Default: the local count.
        cu_seqlens: `[B + 1]` offsets of packed `[N]` tokens, which need it as in `ppo_loss`.
        config: the options of the loss.
        process_group: the processes over which the vocabulary is split, as in `linear_logprobs`.
        chunk_tokens: rows of logits at once, as in `linear_logprobs`.

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
    shard = check_linear_inputs(hidden, weight, targets, bias, temperature, softcap, mask, process_group, chunk_tokens)
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
    _checks.check_loss_layout(config, "targets", targets, cu_seqlens)
    _checks.check_normalizer(normalizer)
    if config.kl_coef and ref_logprobs is None:
        raise ValueError(f"ref_logprobs is None; it must be given where config.kl_coef is {config.kl_coef}")
    if backend.resolve("linear_ppo_loss", hidden.device) == "reference":
        return backend.reference("linear_ppo_loss", hidden.device)(
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
            process_group=process_group,
            chunk_tokens=chunk_tokens,
        )
    divisor, denominator = split_normalizer(normalizer, hidden.device)
    loss, stats, logprobs, *_ = torch.ops.fgrl.linear_ppo_loss(
        hidden,
        weight,
        targets,
        bias,
        mask,
        *linear_options(hidden, weight, bias, temperature, softcap, shard, process_group, chunk_tokens),
        old_logprobs,
        advantages,
        ref_logprobs,
        rollout_logprobs,
        divisor,
        cu_seqlens,
        denominator,
        *scalars(config),
        [wants_gradient(hidden), wants_gradient(weight), bias is not None and wants_gradient(bias)],
    )
    return LinearPPOLoss(loss, dict(zip(STATS, stats.unbind(), strict=True)), logprobs)


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, mask: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    linear, rest = LinearOptions(*rest[:_LINEAR_OPTIONS]), rest[_LINEAR_OPTIONS:]
    old_logprobs, advantages, ref_logprobs, rollout_logprobs = rest[:4]
    aggregation, options, wants = rest[4:8], rest[8:-1], rest[-1]
    rows = LinearRows(hidden, weight, targets, bias, mask, linear)
    logprobs, entropy = rows.empty().reshape(targets.shape), rows.empty().reshape(targets.shape)
    gradients = Gradients(rows, wants, saved_dtypes(hidden, weight, bias))
    tokens = (logprobs, old_logprobs, advantages, mask, ref_logprobs, entropy, rollout_logprobs)
    if any(wants) and _needs_sequences(options, rollout_logprobs is not None):
        loss, stats, deferred_scale = _add_after_sequences(rows, gradients, tokens, aggregation, options)
    else:
        deferred_scale = _add_chunks(rows, gradients if any(wants) else None, tokens, aggregation, options)
        loss, stats = torch.ops.fgrl.ppo_loss(*tokens, *aggregation, *options, False, False)[:2]
    return loss, stats, logprobs, *gradients.result(hidden.shape, deferred_scale)


def _needs_sequences(options: tuple[Any, ...], has_rollout: bool) -> bool:
    """Whether the gradient of a token depends on the log-probabilities of its whole sequence."""
    policy_loss, importance_level = POLICY_LOSSES[options[7]], options[11]
    return policy_loss in ("gspo", "gspo-token", "gmpo") or (has_rollout and importance_level > 0)


def _add_chunks(
    rows: LinearRows,
    gradients: Gradients | None,
    tokens: tuple[Tensor | None, ...],
    aggregation: tuple[Any, ...],
    options: tuple[Any, ...],
) -> Tensor | None:
    """Log-probabilities and entropies into `tokens`, and each chunk's gradients while its logits are there."""
    logprobs, old_logprobs, advantages, mask, ref_logprobs, entropy, rollout_logprobs = tokens
    assert logprobs is not None
    assert entropy is not None
    has_bonus = options[5] != 0
    shares = deferred_scale = None
    if gradients is not None:
        shares, deferred_scale = token_shares(logprobs, logprobs, mask, aggregation, gradients.is_fp16)
    for chunk in rows.chunks():
        logps, statistics = rows.statistics(chunk)
        entropies = statistics.entropy()
        logprobs.view(-1)[chunk.rows], entropy.view(-1)[chunk.rows] = logps, entropies
        if gradients is None:
            continue
        old, advantage, ref, rollout, share = (
            None if tensor is None else tensor.reshape(-1)[chunk.rows]
            for tensor in (old_logprobs, advantages, ref_logprobs, rollout_logprobs, shares)
        )
        these = (logps, old, advantage, None, ref, entropies, rollout, None, None, 0.0, _TOKEN_SUM)
        by_logprob, by_entropy = torch.ops.fgrl.ppo_loss(*these, *options, True, has_bonus)[3:]
        gradients.add(chunk, statistics, by_logprob * share, by_entropy * share if has_bonus else None)
        del chunk  # its logits are not needed beside the result
    return deferred_scale


def _add_after_sequences(
    rows: LinearRows,
    gradients: Gradients,
    tokens: tuple[Tensor | None, ...],
    aggregation: tuple[Any, ...],
    options: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss, statistics, and the gradients of tokens that depend on their whole sequence, which chunks cut.

    So all log-probabilities come first. Then the gradients: of the last chunk, whose logits are still there, and of
    the others, whose logits are computed again.
    """
    logprobs, entropy, has_bonus = tokens[0], tokens[5], options[5] != 0
    assert logprobs is not None
    assert entropy is not None
    chunk = statistics = None
    for chunk in rows.chunks():
        logps, statistics = rows.statistics(chunk)
        logprobs.view(-1)[chunk.rows], entropy.view(-1)[chunk.rows] = logps, statistics.entropy()
    loss, stats, scale, by_logprob, by_entropy = torch.ops.fgrl.ppo_loss(
        *tokens, *aggregation, *options, True, has_bonus
    )
    if not gradients.is_fp16:
        by_logprob, by_entropy = by_logprob * scale, by_entropy * scale

    def add(chunk: Chunk, statistics: Statistics) -> None:
        bonus = by_entropy.view(-1)[chunk.rows] if has_bonus else None
        gradients.add(chunk, statistics, by_logprob.view(-1)[chunk.rows], bonus)

    if chunk is not None and statistics is not None:
        add(chunk, statistics)
    del chunk  # its logits make room for those of the others
    for chunk in rows.chunks(but_last=True):
        add(chunk, rows.statistics(chunk)[1])
    return loss, stats, scale if gradients.is_fp16 else None


def token_shares(
    targets: Tensor, logprobs: Tensor, mask: Tensor | None, aggregation: Sequence[Any], is_fp16: bool
) -> tuple[Tensor, Tensor | None]:
    """What the gradient of each token's loss is multiplied by to be that of the whole, and a factor left for the end.

    The gradient of the loss that is the sum of the log-probabilities. fp16 has no room for a gradient divided by a
    number of tokens: there that waits until sums in fp32 are complete.
    """
    zeros = logprobs.new_zeros(targets.shape)
    tokens = (zeros, None, zeros - 1, mask, None, None, None)
    *_, scale, shares, _ = torch.ops.fgrl.ppo_loss(*tokens, *aggregation, *scalars(PPOLossConfig())[1:], True, False)
    return (shares, scale) if is_fp16 else (shares * scale, None)


implement("linear_ppo_loss", _forward)


@torch.library.register_fake("fgrl::linear_ppo_loss", lib=LIBRARY)
def _fake(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    dtype = compute_dtype(hidden, weight, bias)
    loss_dtype = compute_dtype(hidden, weight, bias, *rest[_LINEAR_OPTIONS + 1 : _LINEAR_OPTIONS + 5])
    return (
        hidden.new_empty((), dtype=loss_dtype),
        hidden.new_empty(len(STATS), dtype=loss_dtype),
        hidden.new_empty(targets.shape, dtype=dtype),
        *fake_gradients(hidden, weight, rest[-1], saved_dtypes(hidden, weight, bias)),
    )


differentiate_with_saved_grads("linear_ppo_loss")
