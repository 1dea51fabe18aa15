"""Log-probabilities of target tokens straight from hidden states and the LM head."""

from __future__ import annotations

import torch
from torch import Tensor

from fgrl.reference._common import as_mask, compute_dtype


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
) -> Tensor | tuple[Tensor, Tensor]:
    """See `fgrl.ops.linear_logprobs`.

        z       = W h + b;   z = softcap * tanh(z / softcap)   (only with softcap);   z = z / temperature
        logp    = z_target - logsumexp(z)
        entropy = logsumexp(z) - sum softmax(z) * z

    Rows under a false mask are never multiplied.
    """
    dtype = compute_dtype(hidden, weight, bias)
    valid = as_mask(mask, targets)
    logits = hidden[valid].to(dtype) @ weight.to(dtype).T  # [M, V]
    if bias is not None:
        logits = logits + bias.to(dtype)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_softmax = torch.log_softmax(logits / temperature, dim=-1)
    chosen = log_softmax.gather(1, targets[valid].long()[:, None])[:, 0]
    logprobs = _scatter(chosen, valid)
    if not return_entropy:
        return logprobs
    probabilities = log_softmax.exp()
    impossible = torch.isneginf(log_softmax)
    entropy = -(probabilities * log_softmax.masked_fill(impossible, 0)).sum(-1)
    return logprobs, _scatter(entropy, valid)


def _scatter(rows: Tensor, valid: Tensor) -> Tensor:
    """`rows [M]` to the true positions of `valid`, 0 elsewhere."""
    return rows.new_zeros(valid.shape).masked_scatter(valid, rows)
