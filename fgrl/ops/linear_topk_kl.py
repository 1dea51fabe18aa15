"""Public op: divergence of a student from a teacher of which the log-probabilities of some tokens are known."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks, _values
from fgrl.ops._aggregation import AGGREGATIONS, split_normalizer, wants_gradient
from fgrl.ops._divergence import DIVERGENCES, check_divergence
from fgrl.ops._library import LIBRARY
from fgrl.ops._linear import (
    OPTIONS,
    Gradients,
    LinearOptions,
    LinearRows,
    differentiate_with_saved_grads,
    fake_gradients,
    implement,
    saved_dtypes,
)
from fgrl.ops._linear_checks import check_head, check_sampling, check_vocabulary, linear_options
from fgrl.ops._support import SupportGradients, SupportRows
from fgrl.ops._topk import TAILS, ListedTokens, topk_divergence
from fgrl.ops.linear_ppo_loss import token_shares
from fgrl.types import Aggregation, Divergence, LinearKL, Tail, compute_dtype

LIBRARY.define(
    f"linear_topk_kl(Tensor hidden, Tensor weight, Tensor teacher_ids, Tensor teacher_logprobs, Tensor? bias, "
    f"Tensor? mask, {OPTIONS}, int divergence, float beta, int tail, Tensor? normalizer, Tensor? cu_seqlens, "
    "float denominator, int aggregation, bool[3] wants) "
    "-> (Tensor loss, Tensor kl, Tensor hidden_grad, Tensor weight_grad, Tensor bias_grad)"
)
_HIGHEST = 1e-3  # a log-probability above 0 by less than this is one that has been rounded


def linear_topk_kl(
    hidden: Tensor,
    weight: Tensor,
    teacher_ids: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor | None = None,
    *,
    divergence: Divergence = "reverse",
    beta: float = 0.5,
    tail: Tail = "bucket",
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    normalizer: float | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    aggregation: Aggregation = "token-mean",
    process_group: Any = None,
    chunk_tokens: int | None = None,
) -> LinearKL:
    """`linear_kl` from a teacher that is not in memory: K tokens and their log-probabilities at each position.

    Inference engines report them so (vLLM's `prompt_logprobs`, SGLang's `top_logprobs`). What is known of the others:

        bucket       all other tokens are one more class, with what is left of the teacher's probability, at least 1e-6
                     (less is rounding), and the exact sum of the student's
        renormalize  both distributions are those over the K tokens alone
        ignore       the terms of the K tokens are summed, and the rest is left out: no divergence, it can be negative

    The student's logits exist for one chunk of rows at a time, and gradients are computed along with the loss: three
    matrix products in all. With "renormalize" there are none: each token gathers K vocabulary rows of the head.

    Args:
        hidden: `[N, D]` or `[B, T, D]`; the student's states at the positions that predict the tokens.
        weight: `[V, D]`, the student's LM head.
        teacher_ids: `[N, K]` or `[B, T, K]`, int32 or int64, without repetition within a position.
        teacher_logprobs: the same shape, floating-point, in nats, of the teacher at the same temperature. -inf marks an
            entry that is not there; its id may be anything.
        mask: `[N]` or `[B, T]`, bool or 0/1. Rows with mask 0 are never multiplied, and may hold anything.
        divergence: "reverse", "forward" or "jsd", as in `linear_kl`.
        beta: weight of the teacher in "jsd", between 0 and 1.
        tail: "bucket", "renormalize" or "ignore".
        bias: `[V]`, of the head.
        temperature: what the student's soft-capped logits are divided by, greater than 0.
        softcap: the student's logit soft-cap, greater than 0.
        normalizer: denominator of the aggregation over the *global* batch. Default: the local count.
        cu_seqlens: `[B + 1]` offsets of packed `[N]` tokens; the seq-* aggregations need it for packed tokens.
        aggregation: "token-mean", "token-sum", "seq-mean-token-sum" or "seq-mean-token-mean".
        process_group: the processes over which the vocabulary is split, as in `linear_logprobs`; ids are of the whole.
        chunk_tokens: rows of logits at once, as in `linear_logprobs`.

    Returns:
        `LinearKL(loss, kl)`, as of `linear_kl`.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, in one sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> student, ids = torch.zeros(1, 2), torch.tensor([[3, 1]])
        >>> fgrl.ops.linear_topk_kl(student, torch.ones(8, 2), ids, torch.tensor([[-0.5, -1.5]])).kl
        tensor([0.8419])
    """
    check_head("", hidden, weight, bias, softcap)
    tokens = hidden[..., 0]
    if not isinstance(teacher_ids, Tensor) or teacher_ids.ndim != hidden.ndim or teacher_ids.shape[-1] == 0:
        shape = list(teacher_ids.shape) if isinstance(teacher_ids, Tensor) else f"none, a {type(teacher_ids).__name__}"
        raise ValueError(f"teacher_ids has shape {shape}; it must be {[*tokens.shape, 'K']} with K of at least 1")
    _checks.check_shape("teacher_ids", teacher_ids, (*tokens.shape, teacher_ids.shape[-1]), "hidden but for its width")
    _checks.check_device("teacher_ids", teacher_ids, "hidden", hidden)
    _checks.check_float("teacher_logprobs", teacher_logprobs)
    _checks.check_shape("teacher_logprobs", teacher_logprobs, teacher_ids.shape, "teacher_ids")
    _checks.check_device("teacher_logprobs", teacher_logprobs, "hidden", hidden)
    check_sampling(temperature, chunk_tokens)
    _checks.check_mask("mask", mask, "hidden without its last dimension", tokens)
    check_divergence(divergence, beta)
    _checks.check_choice("tail", tail, get_args(Tail))
    _checks.check_reduction(aggregation, "hidden without its last dimension", tokens, cu_seqlens, normalizer)
    teacher_logprobs = teacher_logprobs.detach()
    rows = None if mask is None else mask[..., None].expand(teacher_ids.shape)
    _values.check_range(
        teacher_logprobs,
        float("-inf"),
        _HIGHEST,
        "teacher_logprobs has entries above 0 or NaN; they must be log-probabilities",
        mask=rows,
    )
    given = ~torch.isneginf(teacher_logprobs) if rows is None else ~torch.isneginf(teacher_logprobs) & (rows != 0)
    shard = check_vocabulary("teacher_ids", teacher_ids, weight, given, process_group)
    if backend.resolve("linear_topk_kl", hidden.device) == "reference":
        return backend.reference("linear_topk_kl", hidden.device)(
            hidden,
            weight,
            teacher_ids,
            teacher_logprobs,
            mask,
            divergence=divergence,
            beta=beta,
            tail=tail,
            bias=bias,
            temperature=temperature,
            softcap=softcap,
            normalizer=normalizer,
            cu_seqlens=cu_seqlens,
            aggregation=aggregation,
            process_group=process_group,
            chunk_tokens=chunk_tokens,
        )
    divisor, denominator = split_normalizer(normalizer, hidden.device)
    loss, kl, *_ = torch.ops.fgrl.linear_topk_kl(
        hidden,
        weight,
        teacher_ids,
        teacher_logprobs,
        bias,
        mask,
        *linear_options(hidden, weight, bias, temperature, softcap, shard, process_group, chunk_tokens),
        DIVERGENCES.index(divergence),
        float(beta),
        TAILS.index(tail),
        divisor,
        cu_seqlens,
        denominator,
        AGGREGATIONS.index(aggregation),
        [wants_gradient(hidden), wants_gradient(weight), bias is not None and wants_gradient(bias)],
    )
    return LinearKL(loss, kl)


_LINEAR_OPTIONS = len(LinearOptions._fields)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    teacher_ids: Tensor,
    teacher_logprobs: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    options, rest = LinearOptions(*rest[:_LINEAR_OPTIONS]), rest[_LINEAR_OPTIONS:]
    divergence, beta, tail, *aggregation, wants = rest
    none = hidden.new_full(hidden.shape[:-1], -1, dtype=torch.int64)  # no row has a target
    if TAILS[tail] == "renormalize":
        return _renormalized(hidden, weight, none, teacher_ids, teacher_logprobs, bias, mask, options, *rest)
    rows = LinearRows(hidden, weight, none, bias, mask, options._replace(shard=None))
    kl = rows.empty()
    gradients = Gradients(rows, wants, saved_dtypes(hidden, weight, bias))
    shares, deferred_scale = token_shares(none, kl, mask, aggregation, gradients.is_fp16)
    shape = (-1, teacher_ids.shape[-1])
    for chunk in rows.chunks():
        ids = teacher_ids.reshape(shape)[chunk.rows].long()
        teacher = teacher_logprobs.reshape(shape)[chunk.rows].to(kl.dtype)
        listed = ListedTokens(rows, chunk, ids, teacher, options.shard)
        values = topk_divergence(listed.student, listed.rest, teacher, TAILS[tail], DIVERGENCES[divergence], beta)
        kl[chunk.rows] = values.divergence
        if any(wants):
            scale = shares.reshape(-1)[chunk.rows] / options.temperature
            out = gradients.buffer(chunk)
            listed.write_gradient(out, values.by_listed * scale[:, None], values.by_rest * scale)
            gradients.add_products(chunk, out)
        del chunk, listed  # its logits are not needed beside the result
    loss = (kl * shares.reshape(-1)).sum()
    if deferred_scale is not None:
        loss = loss * deferred_scale
    return loss, kl.reshape(none.shape), *gradients.result(hidden.shape, deferred_scale)


def _renormalized(
    hidden: Tensor,
    weight: Tensor,
    none: Tensor,
    teacher_ids: Tensor,
    teacher_logprobs: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    options: LinearOptions,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """Over the K tokens alone, so from their vocabulary rows alone."""
    divergence, beta, tail, *aggregation, wants = rest
    ids = torch.where(torch.isneginf(teacher_logprobs), -1, teacher_ids)
    rows = SupportRows(hidden, weight, none, ids, bias, mask, *options)
    kl, gradients = rows.all.empty(), SupportGradients(rows, wants)
    shares, _ = token_shares(none, kl, mask, aggregation, False)  # gradients are summed in the dtype of the computation
    for chunk in rows.chunks():
        teacher = teacher_logprobs.reshape(-1, ids.shape[-1])[chunk.rows].to(kl.dtype)
        values = topk_divergence(
            chunk.z, torch.zeros_like(chunk.z[:, 0]), teacher, TAILS[tail], DIVERGENCES[divergence], beta
        )
        kl[chunk.rows] = values.divergence
        if any(wants):
            gradients.add(chunk, values.by_listed * shares.reshape(-1)[chunk.rows, None])
        del chunk  # what it has gathered is not needed beside the next one's
    loss = (kl * shares.reshape(-1)).sum()
    return loss, kl.reshape(none.shape), *gradients.result(hidden.shape, saved_dtypes(hidden, weight, bias))


implement("linear_topk_kl", _forward)


@torch.library.register_fake("fgrl::linear_topk_kl", lib=LIBRARY)
def _fake(
    hidden: Tensor, weight: Tensor, teacher_ids: Tensor, teacher_logprobs: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    dtype = compute_dtype(hidden, weight, bias)
    return (
        hidden.new_empty((), dtype=dtype),
        hidden.new_empty(hidden.shape[:-1], dtype=dtype),
        *fake_gradients(hidden, weight, rest[-1], saved_dtypes(hidden, weight, bias)),
    )


differentiate_with_saved_grads("linear_topk_kl")
