"""Public op: divergence of a student from a teacher over the whole vocabulary, straight from hidden states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._aggregation import AGGREGATIONS, split_normalizer, wants_gradient
from fgrl.ops._divergence import DIVERGENCES, check_divergence
from fgrl.ops._library import LIBRARY
from fgrl.ops._linear import (
    Gradients,
    LinearOptions,
    LinearRows,
    differentiate_with_saved_grads,
    fake_gradients,
    implement,
    saved_dtypes,
)
from fgrl.ops._linear_checks import check_head, check_sampling, group_name
from fgrl.ops.linear_ppo_loss import token_shares
from fgrl.types import Aggregation, Divergence, LinearKL, autocast_dtype, compute_dtype

LIBRARY.define(
    "linear_kl(Tensor hidden, Tensor weight, Tensor teacher_hidden, Tensor teacher_weight, Tensor? bias, "
    "Tensor? teacher_bias, Tensor? mask, float temperature, float? softcap, float? teacher_softcap, str? group, "
    "SymInt chunk_tokens, ScalarType? autocast, int divergence, float beta, Tensor? normalizer, Tensor? cu_seqlens, "
    "float denominator, int aggregation, bool[3] wants) "
    "-> (Tensor loss, Tensor kl, Tensor hidden_grad, Tensor weight_grad, Tensor bias_grad)"
)


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    mask: Tensor | None = None,
    *,
    divergence: Divergence = "reverse",
    beta: float = 0.5,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    normalizer: float | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    aggregation: Aggregation = "token-mean",
    process_group: Any = None,
    chunk_tokens: int | None = None,
) -> LinearKL:
    """Divergence of a student from a teacher at each token, over the whole vocabulary: distillation without logits.

    With `p` the student's distribution and `q` the teacher's:

        reverse   KL(p || q) = sum p (log p - log q)
        forward   KL(q || p) = sum q (log q - log p)
        jsd       beta KL(q || m) + (1 - beta) KL(p || m),   m = beta q + (1 - beta) p   (GKD, arXiv 2306.13649, eq. 1)

    The logits of both sides exist for one chunk of rows at a time (see `linear_logprobs`), and gradients are computed
    along with the loss: four matrix products in all. There are none for the teacher. Gradients wait for the backward
    pass as those of `linear_ppo_loss` do, and inside `torch.autocast` operands are rounded as in `linear_logprobs`.

    Args:
        hidden: `[N, D]` or `[B, T, D]`; the student's states at the positions that predict the tokens.
        weight: `[V, D]`, the student's LM head.
        teacher_hidden: `[N, E]` or `[B, T, E]`; the teacher's states at the same positions.
        teacher_weight: `[V, E]`, the teacher's LM head, for the same vocabulary. fp64 where the student is, and only
            there.
        mask: `[N]` or `[B, T]`, bool or 0/1. Rows with mask 0 are never multiplied. Finding the others makes the host
            wait for the GPU, once.
        divergence: "reverse", "forward" or "jsd".
        beta: weight of the teacher in "jsd", between 0 and 1.
        bias: `[V]`, of the student's head.
        teacher_bias: `[V]`, of the teacher's head.
        temperature: what the soft-capped logits of both are divided by, greater than 0. The loss is not multiplied by
            its square.
        softcap: the student's logit soft-cap, greater than 0.
        teacher_softcap: the teacher's.
        normalizer: denominator of the aggregation over the *global* batch. Default: the local count.
        cu_seqlens: `[B + 1]` offsets of packed `[N]` tokens; the seq-* aggregations need it for packed tokens.
        aggregation: "token-mean", "token-sum", "seq-mean-token-sum" or "seq-mean-token-mean".
        process_group: the processes over which the vocabulary of both heads is split, as in `linear_logprobs`.
        chunk_tokens: rows of logits at once, as in `linear_logprobs`; both sides share `FGRL_CHUNK_MB`.

    Returns:
        `LinearKL(loss, kl)`: a 0-d loss, and the divergence of each token (nats) without gradient in the shape of the
        mask, exactly 0 where that is false. A fully masked batch gives loss 0 and zero gradients.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, in one sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> student, teacher = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 3)
        >>> loss, kl = fgrl.ops.linear_kl(student, torch.eye(4, 2), teacher, torch.eye(4, 3), divergence="forward")
        >>> loss.backward()
        >>> kl, student.grad
        (tensor([0.0628]), tensor([[-0.0469, -0.0469]]))
    """
    check_head("", hidden, weight, bias, softcap)
    check_head("teacher_", teacher_hidden, teacher_weight, teacher_bias, teacher_softcap)
    _checks.check_shape(
        "teacher_hidden", teacher_hidden, (*hidden.shape[:-1], teacher_hidden.shape[-1]), "hidden but for its width"
    )
    _checks.check_shape("teacher_weight", teacher_weight, (weight.shape[0], teacher_weight.shape[1]), "weight's rows")
    _checks.check_device("teacher_hidden", teacher_hidden, "hidden", hidden)
    dtype = compute_dtype(hidden, weight, bias)
    if compute_dtype(teacher_hidden, teacher_weight, teacher_bias) != dtype:
        raise ValueError(
            f"teacher_hidden has dtype {teacher_hidden.dtype} and the student computes in {dtype}; "
            "the teacher must be in float64 where the student is, and only there"
        )
    check_sampling(temperature, chunk_tokens)
    tokens = hidden[..., 0]
    _checks.check_mask("mask", mask, "hidden without its last dimension", tokens)
    check_divergence(divergence, beta)
    _checks.check_reduction(aggregation, "hidden without its last dimension", tokens, cu_seqlens, normalizer)
    if backend.resolve("linear_kl", hidden.device) == "reference":
        return backend.reference("linear_kl", hidden.device)(
            hidden,
            weight,
            teacher_hidden,
            teacher_weight,
            mask,
            divergence=divergence,
            beta=beta,
            bias=bias,
            teacher_bias=teacher_bias,
            temperature=temperature,
            softcap=softcap,
            teacher_softcap=teacher_softcap,
            normalizer=normalizer,
            cu_seqlens=cu_seqlens,
            aggregation=aggregation,
            process_group=process_group,
            chunk_tokens=chunk_tokens,
        )
    divisor, denominator = split_normalizer(normalizer, hidden.device)
    loss, kl, *_ = torch.ops.fgrl.linear_kl(
        hidden,
        weight,
        teacher_hidden.detach(),
        teacher_weight.detach(),
        bias,
        None if teacher_bias is None else teacher_bias.detach(),
        mask,
        float(temperature),
        None if softcap is None else float(softcap),
        None if teacher_softcap is None else float(teacher_softcap),
        group_name(process_group),
        chunk_tokens or 0,
        autocast_dtype(hidden.device.type, hidden, weight, bias),
        DIVERGENCES.index(divergence),
        float(beta),
        divisor,
        cu_seqlens,
        denominator,
        AGGREGATIONS.index(aggregation),
        [wants_gradient(hidden), wants_gradient(weight), bias is not None and wants_gradient(bias)],
    )
    return LinearKL(loss, kl)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None,
    teacher_bias: Tensor | None,
    mask: Tensor | None,
    temperature: float,
    softcap: float | None,
    teacher_softcap: float | None,
    group: str | None,
    chunk_tokens: int,
    autocast: torch.dtype | None,
    divergence: int,
    beta: float,
    *rest: Any,
) -> tuple[Tensor, ...]:
    *aggregation, wants = rest
    options = LinearOptions(temperature, softcap, None, group, chunk_tokens, autocast)
    dtype = compute_dtype(hidden, weight, bias)
    none = hidden.new_full(hidden.shape[:-1], -1, dtype=torch.int64)  # no row has a target
    student = LinearRows(hidden, weight, none, bias, mask, options, other_bytes=dtype.itemsize)
    options = options._replace(softcap=teacher_softcap, chunk_tokens=student.at_once)
    teacher = LinearRows(teacher_hidden, teacher_weight, none, teacher_bias, None, options, selected=student.selected)
    kl = student.empty()
    gradients = Gradients(student, wants, saved_dtypes(hidden, weight, bias))
    shares, deferred_scale = token_shares(none, kl, mask, aggregation, gradients.is_fp16)
    scalars = (temperature, softcap, teacher_softcap, divergence, beta)
    for ours, theirs in zip(student.chunks(), teacher.chunks(), strict=True):
        p, q = student.statistics(ours)[1], teacher.statistics(theirs)[1]
        pair = (ours.logits, theirs.logits, bias, teacher_bias)
        normalizers = torch.stack([p.max, p.total.log(), q.max, q.total.log()])
        sums = torch.ops.fgrl.kl_statistics(*pair, normalizers, *scalars).sum(1)  # [2, R]
        student.reduce(sums, "SUM")
        kl[ours.rows] = sums[0]
        if any(wants):
            grads = torch.stack([sums[1], shares.reshape(-1)[ours.rows] / temperature])
            out = gradients.buffer(ours)
            torch.ops.fgrl.kl_gradient(*pair, normalizers, grads, *scalars, out)
            gradients.add_products(ours, out)
        del ours, theirs, pair  # their logits are not needed beside the result
    loss = (kl * shares.reshape(-1)).sum()
    if deferred_scale is not None:
        loss = loss * deferred_scale
    return loss, kl.reshape(none.shape), *gradients.result(hidden.shape, deferred_scale)


implement("linear_kl", _forward)


@torch.library.register_fake("fgrl::linear_kl", lib=LIBRARY)
def _fake(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    dtype = compute_dtype(hidden, weight, bias)
    return (
        hidden.new_empty((), dtype=dtype),
        hidden.new_empty(hidden.shape[:-1], dtype=dtype),
        *fake_gradients(hidden, weight, rest[-1], saved_dtypes(hidden, weight, bias)),
    )


differentiate_with_saved_grads("linear_kl")
