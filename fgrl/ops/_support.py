"""K vocabulary rows of the head a token instead of all of them: `linear_logprobs(support_ids=)`, and `linear_topk_kl`
where nothing but the listed tokens counts.

With `z [K]` the logits of the tokens that the sampler had kept, biased, soft-capped and divided by the temperature,

    p = softmax(z),   logp = z_target - logsumexp(z),   entropy = -sum p log p

and where `g` is a loss's gradient by logp and `h` that by the entropy, its gradient by `z` is

    g ([it is the target] - p) - h p (log p + entropy)

Every token gathers its rows of the head, `[R, K, D]` for a chunk of R tokens, and adds to their gradients. That moves
K D numbers a token each way where the whole vocabulary costs 2 V D operations: for tens or hundreds of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgrl.ops._chunks import budget_bytes, rows_at_once
from fgrl.ops._library import LIBRARY
from fgrl.ops._linear import OPTIONS, LinearOptions, LinearRows, dtypes, fake_gradients, implement
from fgrl.types import compute_dtype

INPUTS = f"Tensor hidden, Tensor weight, Tensor targets, Tensor support_ids, Tensor? bias, Tensor? mask, {OPTIONS}"
LIBRARY.define(f"linear_support_logprobs({INPUTS}) -> (Tensor logprobs, Tensor entropy)")
LIBRARY.define(
    f"linear_support_logprobs_backward({INPUTS}, Tensor? logprobs_grad, Tensor? entropy_grad, bool[3] wants) "
    "-> (Tensor hidden_grad, Tensor weight_grad, Tensor bias_grad)"
)


def support_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies in the shape of `targets`; arguments as of `INPUTS`, checked."""
    logprobs, entropy = torch.ops.fgrl.linear_support_logprobs(hidden, weight, targets, *rest)
    return logprobs, entropy


class SupportChunk(NamedTuple):
    """Some rows, and what they have gathered."""

    rows: slice | Tensor
    """Which of all rows these are."""
    hidden: Tensor
    """`[R, D]` as it is multiplied, in the dtype of the computation."""
    weight: Tensor
    """`[R, K, D]`: the vocabulary rows of each, those of token 0 where none is listed or it is another process's."""
    ids: Tensor
    """`[R, K]`: where they are in the head."""
    is_here: Tensor
    """`[R, K]`: whether it is a listed token of this process's part of the vocabulary."""
    is_target: Tensor
    """`[R, K]`"""
    z: Tensor
    """`[R, K]`: logits of the listed tokens, -inf where none is listed."""
    cap_grad: Tensor | None
    """`[R, K]`: derivative of the soft-cap."""


class SupportRows:
    """The rows of one call that its mask selects, a chunk of them at a time."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        support_ids: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        *options: Any,
    ) -> None:
        self.options = LinearOptions(*options)
        self.all = LinearRows(hidden, weight, targets, bias, mask, self.options._replace(shard=None))
        self._ids = support_ids.reshape(-1, support_ids.shape[-1])
        count, dtype = self.all.count, self.all.head.dtype
        numbers = support_ids.shape[-1] * hidden.shape[-1]
        # A GPU too takes as few rows as have room: they are gathered, and no product is shared between them.
        self._at_once = self.options.chunk_tokens or rows_at_once(
            count, max(numbers, 1), dtype.itemsize, budget_bytes(hidden.device), "cpu"
        )

    def chunks(self) -> Iterator[SupportChunk]:
        for start in range(0, self.all.count, max(self._at_once, 1)):
            end = min(start + self._at_once, self.all.count)
            yield self._gather(slice(start, end) if self.all.selected is None else self.all.selected[start:end])

    def _gather(self, rows: slice | Tensor) -> SupportChunk:
        head, softcap, bias = self.all.head, self.all.softcap, self.all.bias
        hidden = head.operand(self.all.hidden[rows]).to(head.dtype)
        listed = self._ids[rows].long()
        ids = listed if self.options.shard is None else listed - self.options.shard[0]
        is_here = (listed >= 0) & (ids >= 0) & (ids < head.weight.shape[0])
        ids = torch.where(is_here, ids, 0)
        weight = head.weight[ids].to(head.dtype)
        z = torch.bmm(weight, hidden[:, :, None])[:, :, 0]
        if bias is not None:
            z = z + bias.to(z.dtype)[ids]
        cap_grad = None
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
            cap_grad = 1 - (z / softcap).square()
        z = torch.where(is_here, z / self.all.temperature, 0)
        self.all.reduce(z, "SUM")
        z = torch.where(listed >= 0, z, -math.inf)
        is_target = listed == self.all.targets[rows][:, None]
        return SupportChunk(rows, hidden, weight, ids, is_here, is_target, z, cap_grad)


class SupportGradients:
    """Gradients by hidden states, head and bias, as far as they are `wanted`, gathered chunk by chunk."""

    def __init__(self, rows: SupportRows, wants: list[bool]) -> None:
        self._rows, self._wants = rows.all, wants
        hidden, weight = rows.all.hidden, rows.all.head.weight
        shapes = [hidden.shape, weight.shape, weight.shape[:1]]
        self._grads = [
            hidden.new_zeros(shape if wanted else 0, dtype=rows.all.head.dtype)
            for shape, wanted in zip(shapes, wants, strict=True)
        ]

    def add(self, chunk: SupportChunk, z_grad: Tensor) -> None:
        """Take in a chunk, given the gradient by its z `[R, K]`. What it has gathered is overwritten."""
        z_grad = z_grad / self._rows.temperature
        if chunk.cap_grad is not None:
            z_grad = z_grad * chunk.cap_grad
        z_grad = torch.where(chunk.is_here, z_grad, 0)
        ids = chunk.ids.reshape(-1)
        if self._wants[0]:
            by_hidden = torch.bmm(z_grad[:, None], chunk.weight)[:, 0]
            self._rows.reduce(by_hidden, "SUM")
            self._grads[0][chunk.rows] = by_hidden
        if self._wants[1]:
            torch.mul(z_grad[:, :, None], chunk.hidden[:, None], out=chunk.weight)
            _add_rows(self._grads[1], ids, chunk.weight.reshape(ids.numel(), -1))
        if self._wants[2]:
            _add_rows(self._grads[2], ids, z_grad.reshape(-1))

    def result(self, shape: torch.Size, dtypes: list[torch.dtype]) -> tuple[Tensor, ...]:
        """By hidden in the `shape` of the input, weight and bias; empty where they are not wanted."""
        if self._wants[0]:
            self._grads[0] = self._grads[0].reshape(shape)
        return tuple(grad.to(dtype) for grad, dtype in zip(self._grads, dtypes, strict=True))


def _entropy(logprobs: Tensor) -> Tensor:
    return -torch.where(torch.isneginf(logprobs), 0, logprobs.exp() * logprobs).sum(1)


def _forward(hidden: Tensor, weight: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    rows = SupportRows(hidden, weight, targets, *rest)
    logprobs, entropy = rows.all.empty(), rows.all.empty()
    for chunk in rows.chunks():
        listed = chunk.z.log_softmax(1)
        logprobs[chunk.rows] = torch.where(chunk.is_target, listed, 0).sum(1)
        entropy[chunk.rows] = _entropy(listed)
        del chunk  # what it has gathered is not needed beside the next one's
    return logprobs.reshape(targets.shape), entropy.reshape(targets.shape)


def _backward(hidden: Tensor, weight: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *inputs, logprobs_grad, entropy_grad, wants = rest
    rows = SupportRows(hidden, weight, targets, *inputs)
    gradients = SupportGradients(rows, wants)
    for chunk in rows.chunks():
        gradients.add(chunk, _gradient(chunk, logprobs_grad, entropy_grad))
        del chunk
    return gradients.result(hidden.shape, dtypes(hidden, weight, rows.all.bias))


def _gradient(chunk: SupportChunk, logprobs_grad: Tensor | None, entropy_grad: Tensor | None) -> Tensor:
    """By z `[R, K]`."""
    logprobs = chunk.z.log_softmax(1)
    p, result = logprobs.exp(), torch.zeros_like(logprobs)
    if logprobs_grad is not None:
        result += logprobs_grad.reshape(-1)[chunk.rows][:, None] * (chunk.is_target.to(p.dtype) - p)
    if entropy_grad is not None:
        surprise = torch.where(torch.isneginf(logprobs), 0, logprobs + _entropy(logprobs)[:, None])
        result -= entropy_grad.reshape(-1)[chunk.rows][:, None] * p * surprise
    return result


def _add_rows(to: Tensor, ids: Tensor, rows: Tensor) -> None:
    """`to[ids] += rows`, in an order that is the same each time."""
    if to.device.type == "cpu":
        to.index_add_(0, ids, rows)
    else:
        to.index_put_((ids,), rows, accumulate=True)  # sorts; index_add_ adds atomically on a GPU


implement("linear_support_logprobs", _forward)
implement("linear_support_logprobs_backward", _backward)


@torch.library.register_fake("fgrl::linear_support_logprobs", lib=LIBRARY)
def _forward_fake(
    hidden: Tensor, weight: Tensor, targets: Tensor, support_ids: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    dtype = compute_dtype(hidden, weight, bias)
    return tuple(hidden.new_empty(targets.shape, dtype=dtype) for _ in range(2))


@torch.library.register_fake("fgrl::linear_support_logprobs_backward", lib=LIBRARY)
def _backward_fake(
    hidden: Tensor, weight: Tensor, targets: Tensor, support_ids: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    return fake_gradients(hidden, weight, rest[-1], dtypes(hidden, weight, bias))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    options = LinearOptions(*inputs[6:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], options.shard)
    ctx.options = options._replace(shard=None)


@once_differentiable
def _formula(ctx: Any, logprobs_grad: Tensor | None, entropy_grad: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, shard = ctx.saved_tensors
    options = ctx.options._replace(shard=shard)
    places = (0, 1, 4)
    wants = [ctx.needs_input_grad[place] for place in places]
    result: list[Tensor | None] = [None] * (len(inputs) + len(options))
    if logprobs_grad is not None or entropy_grad is not None:
        found = torch.ops.fgrl.linear_support_logprobs_backward(*inputs, *options, logprobs_grad, entropy_grad, wants)
        for place, wanted, grad in zip(places, wants, found, strict=True):
            result[place] = grad if wanted else None
    return tuple(result)


torch.library.register_autograd("fgrl::linear_support_logprobs", _formula, setup_context=_setup_context, lib=LIBRARY)
