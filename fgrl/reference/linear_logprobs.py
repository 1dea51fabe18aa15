"""Log-probabilities of target tokens straight from hidden states and the LM head."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fgrl.reference._common import as_mask, gather_shards, rounds_operands
from fgrl.types import compute_dtype


@rounds_operands("hidden", "weight")
def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
    return_entropy: bool = False,
    support_ids: Tensor | None = None,
    process_group: Any = None,
    chunk_tokens: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `fgrl.ops.linear_logprobs`.

        z       = W h + b;   z = softcap * tanh(z / softcap)   (only with softcap);   z = z / temperature
        logp    = z_target - logsumexp(z)
        entropy = logsumexp(z) - sum softmax(z) * z

    With `support_ids` z is -inf for all other tokens.
    Rows under a false mask are never multiplied. A head that is split over `process_group` is put together first.
    """
    weight = gather_shards(weight, process_group)
    bias = None if bias is None else gather_shards(bias, process_group)
    valid = as_mask(mask, targets)
    log_softmax = valid_log_softmax(hidden, weight, valid, bias=bias, temperature=temperature, softcap=softcap)
    if support_ids is not None:
        log_softmax = _within(log_softmax, support_ids[valid].long())
    logprobs = target_logprobs(log_softmax, targets, valid)
    return (logprobs, entropies(log_softmax, valid)) if return_entropy else logprobs


def valid_log_softmax(
    hidden: Tensor, weight: Tensor, valid: Tensor, *, bias: Tensor | None, temperature: float, softcap: float | None
) -> Tensor:
    """`[M, V]`: log-softmax of the logits of the M rows of `hidden` that a bool mask keeps."""
    dtype = compute_dtype(hidden, weight, bias)
    logits = hidden[valid].to(dtype) @ weight.to(dtype).T  # [M, V]
    if bias is not None:
        logits = logits + bias.to(dtype)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits / temperature, dim=-1)


def _within(log_softmax: Tensor, ids: Tensor) -> Tensor:
    """`log_softmax [M, V]` of the tokens in `ids [M, K]` alone, where -1 is none."""
    is_kept = torch.zeros_like(log_softmax, dtype=torch.int32).scatter_add(1, ids.clamp(min=0), (ids >= 0).int()) > 0
    return torch.log_softmax(log_softmax.masked_fill(~is_kept, -math.inf), dim=-1)


def target_logprobs(log_softmax: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """The entry of each valid target in its row of `log_softmax [M, V]`; shape of `targets`, 0 elsewhere."""
    return scatter_rows(log_softmax.gather(1, targets[valid].long()[:, None])[:, 0], valid)


def entropies(log_softmax: Tensor, valid: Tensor) -> Tensor:
    """Entropy of each row of `log_softmax [M, V]`, in nats; shape of `valid`, 0 where that is false."""
    impossible = torch.isneginf(log_softmax)
    return scatter_rows(-(log_softmax.exp() * log_softmax.masked_fill(impossible, 0)).sum(-1), valid)


def scatter_rows(rows: Tensor, valid: Tensor) -> Tensor:
    """`rows [M]` to the true positions of `valid`, 0 elsewhere."""
    return rows.new_zeros(valid.shape).masked_scatter(valid, rows)
