"""Divergence of a student from a teacher over the whole vocabulary, straight from hidden states and LM heads."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fgrl.reference._common import as_mask, gather_shards, rounds_operands
from fgrl.reference.linear_logprobs import scatter_rows, valid_log_softmax
from fgrl.reference.ppo_loss import aggregate_tokens
from fgrl.types import Aggregation, Divergence, LinearKL


@rounds_operands("hidden", "weight", "teacher_hidden", "teacher_weight")
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
    """See `fgrl.ops.linear_kl`. With `p` the student's distribution and `q` the teacher's, per token:

    reverse   KL(p || q) = sum p (log p - log q)
    forward   KL(q || p) = sum q (log q - log p)
    jsd       beta KL(q || m) + (1 - beta) KL(p || m),   m = beta q + (1 - beta) p
    """
    weight, teacher_weight = (gather_shards(shard, process_group) for shard in (weight, teacher_weight))
    bias, teacher_bias = (
        None if shard is None else gather_shards(shard, process_group) for shard in (bias, teacher_bias)
    )
    valid = as_mask(mask, hidden[..., 0])
    student = valid_log_softmax(hidden, weight, valid, bias=bias, temperature=temperature, softcap=softcap)
    with torch.no_grad():
        teacher = valid_log_softmax(
            teacher_hidden, teacher_weight, valid, bias=teacher_bias, temperature=temperature, softcap=teacher_softcap
        )
    kl = scatter_rows(divergence_terms(student, teacher, divergence, beta).sum(-1), valid)
    return LinearKL(aggregate_tokens(kl, valid, aggregation, normalizer, cu_seqlens), kl.detach())


def divergence_terms(student: Tensor, teacher: Tensor, divergence: Divergence, beta: float) -> Tensor:
    """What each class adds to the divergence, from the log-probabilities of both sides; an impossible one adds 0."""
    if divergence == "reverse":
        return _relative(student, student, teacher)
    if divergence == "forward":
        return _relative(teacher, teacher, student)
    lowest = torch.finfo(student.dtype).min / 2  # finite, so that a class that both leave out has a gradient of 0
    student, teacher = student.clamp(min=lowest), teacher.clamp(min=lowest)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _relative(teacher, teacher, mixture) + (1 - beta) * _relative(student, student, mixture)


def _relative(weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`e^weights (first - second)`, 0 where the weight is 0."""
    is_possible = ~torch.isneginf(weights)
    first, second = (torch.where(is_possible, side, 0) for side in (first, second))
    return torch.where(is_possible, weights, -math.inf).exp() * (first - second)
