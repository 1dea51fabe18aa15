"""Divergence of a student from a teacher of which the log-probabilities of some tokens are known."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fgrl.reference._common import as_mask, gather_shards, rounds_operands
from fgrl.reference.linear_kl import divergence_terms
from fgrl.reference.linear_logprobs import scatter_rows, valid_log_softmax
from fgrl.reference.ppo_loss import aggregate_tokens
from fgrl.types import TAIL_FLOOR, Aggregation, Divergence, LinearKL, Tail


@rounds_operands("hidden", "weight")
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
    """See `fgrl.ops.linear_topk_kl`: `linear_kl` over K classes, or K + 1 with all other tokens as one more."""
    weight = gather_shards(weight, process_group)
    bias = None if bias is None else gather_shards(bias, process_group)
    valid = as_mask(mask, hidden[..., 0])
    log_softmax = valid_log_softmax(hidden, weight, valid, bias=bias, temperature=temperature, softcap=softcap)
    teacher = teacher_logprobs.detach()[valid].to(log_softmax.dtype)  # [M, K]
    is_given = ~torch.isneginf(teacher)
    ids = torch.where(is_given, teacher_ids[valid].long(), 0)
    student = torch.where(is_given, log_softmax.gather(1, ids), -math.inf)
    if tail == "renormalize":
        student, teacher = (_renormalized(side, is_given) for side in (student, teacher))
    if tail == "bucket":
        is_listed = torch.zeros_like(log_softmax).scatter_add(1, ids, is_given.to(teacher.dtype)) > 0
        rest = torch.where(is_listed, -math.inf, log_softmax).logsumexp(1, keepdim=True)  # [M, 1]
        mass = -torch.expm1(teacher.logsumexp(1, keepdim=True).clamp(max=0))
        log_mass = torch.where(is_listed.all(1, keepdim=True), -math.inf, mass.clamp(min=TAIL_FLOOR).log())
        student, teacher = torch.cat([student, rest], 1), torch.cat([teacher, log_mass], 1)
    kl = scatter_rows(divergence_terms(student, teacher, divergence, beta).sum(-1), valid)
    return LinearKL(aggregate_tokens(kl, valid, aggregation, normalizer, cu_seqlens), kl.detach())


def _renormalized(logprobs: Tensor, is_given: Tensor) -> Tensor:
    """Log-probabilities `[M, K]` of the given entries among themselves."""
    some = torch.where(is_given.any(1, keepdim=True), logprobs, 0)
    return torch.where(is_given, torch.log_softmax(some, 1), -math.inf)
