"""Public op: log-probabilities straight from hidden states and the LM head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from fgrl import backend
from fgrl.ops._library import LIBRARY
from fgrl.ops._linear import (
    OPTIONS,
    Gradients,
    LinearOptions,
    LinearRows,
    Statistics,
    dtypes,
    fake_gradients,
    implement,
)
from fgrl.ops._linear_checks import check_linear_inputs, check_support, linear_options
from fgrl.ops._support import support_logprobs
from fgrl.types import compute_dtype

INPUTS = f"Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, Tensor? mask, {OPTIONS}"
LIBRARY.define(f"linear_logprobs({INPUTS}) -> (Tensor logprobs, Tensor entropy, Tensor statistics, Tensor cast)")
LIBRARY.define(
    f"linear_logprobs_backward({INPUTS}, Tensor statistics, Tensor cast, Tensor? logprobs_grad, Tensor? entropy_grad, "
    "bool[3] wants) -> (Tensor hidden_grad, Tensor weight_grad, Tensor bias_grad)"
)
# The rows that the mask of a forward pass selects, for its backward pass, by the statistics that the two share.
_SELECTED = WeakTensorKeyDictionary()


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
    """Log-probability of each target token, and on request the entropy, from the last hidden states.

    `z = W h + b`, soft-capped as `softcap * tanh(z / softcap)`, divided by `temperature`; then
    `logp = z_target - logsumexp(z)`. Differentiable in hidden, weight and bias.

    There are never more logits than `chunk_tokens` rows, or than `FGRL_CHUNK_MB` has room for (environment; default
    64 MiB on the CPU, 1/32 of the memory of a GPU): the backward pass computes them again. They are fp32 before the
    softmax also for bf16 and fp16 input.

    Inside `torch.autocast` the operands of the products are rounded to its dtype, as those of `torch.nn.Linear` are,
    and nothing else is: logits, sums and gradients by fp32 inputs stay fp32. The head is cast once, for all chunks and
    for the backward pass, which needs no autocast around it.

    Args:
        hidden: `[N, D]` or `[B, T, D]`; fp32, bf16 or fp16. The state at the position that *predicts* the target.
        weight: `[V, D]`, the LM head.
        targets: `[N]` or `[B, T]`, int32 or int64; any value is allowed where the mask is false.
        bias: `[V]`.
        temperature: the sampling temperature, greater than 0; applied after the soft-cap.
        softcap: logit soft-cap (Gemma 2: 30), greater than 0.
        mask: shape of `targets`, bool or 0/1. Rows with mask 0 are never multiplied. Finding the others makes the
            host wait for the GPU, once for both passes; rows that are packed already and no mask do not.
        return_entropy: also return the entropy (nats) of each row's distribution.
        support_ids: `[N, K]` or `[B, T, K]`, int32 or int64: the tokens that top-k, top-p or min-p sampling had kept at
            each position, among them the target, none of them twice; -1 where there are fewer. The distribution is then
            that over these tokens, which is what was sampled from: the ratio of two policies is the importance weight
            where both have the support of the one that sampled ("Keep Sampling Mask" of DeepSeek-V3.2, arXiv
            2512.02556). There is no `top_p=`: the support of the policy in training moves, and may lose the target.
            K vocabulary rows are gathered and multiplied for each token instead of all V.
        process_group: the processes over which the vocabulary is split (tensor parallelism). `weight` and `bias` are
            then this process's vocabulary rows, those of lower ranks before them, of any number; all else is the same
            on each.
            The gradient by `hidden` is that of the whole vocabulary, those by `weight` and `bias` are the local ones.
        chunk_tokens: rows of logits at once, at least 1, best a multiple of 128 on a GPU. Default: as many as
            `FGRL_CHUNK_MB` has room for.

    Returns:
        `logprobs` in the shape of `targets`, or `(logprobs, entropy)`; fp32 (fp64 when an input is fp64), exactly 0
        where the mask is false. Their negative mean is the plain cross-entropy of supervised fine-tuning.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, a target outside the vocabulary included, in one
            sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> fgrl.ops.linear_logprobs(torch.zeros(2, 3), torch.zeros(8, 3), torch.tensor([1, 7]))
        tensor([-2.0794, -2.0794])
    """
    shard = check_linear_inputs(hidden, weight, targets, bias, temperature, softcap, mask, process_group, chunk_tokens)
    if support_ids is not None:
        check_support(support_ids, weight, targets, mask, shard)
    if backend.resolve("linear_logprobs", hidden.device) == "reference":
        return backend.reference("linear_logprobs", hidden.device)(
            hidden,
            weight,
            targets,
            bias=bias,
            temperature=temperature,
            softcap=softcap,
            mask=mask,
            return_entropy=return_entropy,
            support_ids=support_ids,
            process_group=process_group,
            chunk_tokens=chunk_tokens,
        )
    options = linear_options(hidden, weight, bias, temperature, softcap, shard, process_group, chunk_tokens)
    if support_ids is None:
        logprobs, entropy, *_ = torch.ops.fgrl.linear_logprobs(hidden, weight, targets, bias, mask, *options)
    else:
        logprobs, entropy = support_logprobs(hidden, weight, targets, support_ids, bias, mask, *options)
    return (logprobs, entropy) if return_entropy else logprobs


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, mask: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    rows = LinearRows(hidden, weight, targets, bias, mask, LinearOptions(*options))
    logprobs, entropy, statistics = rows.empty(), rows.empty(), rows.empty(3)
    for chunk in rows.chunks():
        logprobs[chunk.rows], found = rows.statistics(chunk)
        entropy[chunk.rows] = found.entropy()
        statistics[:, chunk.rows] = torch.stack(found)
    if rows.selected is not None:
        _SELECTED[statistics] = rows.selected
    return logprobs.reshape(targets.shape), entropy.reshape(targets.shape), statistics, rows.head.cast


def _backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, mask: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    """Four products with the forward's: the logits once more, then the gradients by hidden states and head."""
    *options, statistics, cast, logprobs_grad, entropy_grad, wants = rest
    selected = _SELECTED.get(statistics)
    rows = LinearRows(hidden, weight, targets, bias, mask, LinearOptions(*options), selected=selected, cast=cast)
    gradients = Gradients(rows, wants, dtypes(hidden, weight, bias))
    grads = [None if grad is None else grad.reshape(-1) for grad in (logprobs_grad, entropy_grad)]
    for chunk in rows.chunks():
        found = Statistics(*statistics[:, chunk.rows])
        gradients.add(chunk, found, *(None if grad is None else grad[chunk.rows] for grad in grads))
        del chunk  # its logits are not needed beside the result
    return gradients.result(hidden.shape)


implement("linear_logprobs", _forward)
implement("linear_logprobs_backward", _backward)


@torch.library.register_fake("fgrl::linear_logprobs", lib=LIBRARY)
def _forward_fake(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, mask: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    dtype, autocast = compute_dtype(hidden, weight, bias), LinearOptions(*options).autocast
    logprobs, entropy = (hidden.new_empty(targets.shape, dtype=dtype) for _ in range(2))
    cast = weight.new_empty(0 if autocast in (None, weight.dtype) else weight.shape, dtype=autocast)
    return logprobs, entropy, hidden.new_empty(3, targets.numel(), dtype=dtype), cast


@torch.library.register_fake("fgrl::linear_logprobs_backward", lib=LIBRARY)
def _backward_fake(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    return fake_gradients(hidden, weight, rest[-1], dtypes(hidden, weight, bias))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, bias, mask, *rest = inputs
    options = LinearOptions(*rest)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, targets, bias, mask, options.shard, *output[2:])
    ctx.options = options._replace(shard=None)


@once_differentiable
def _formula(ctx: Any, logprobs_grad: Tensor | None, entropy_grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *inputs, shard, statistics, cast = ctx.saved_tensors
    options = ctx.options._replace(shard=shard)
    wants = [ctx.needs_input_grad[index] for index in (0, 1, 3)]
    result: list[Tensor | None] = [None] * (len(inputs) + len(options))
    if logprobs_grad is not None or entropy_grad is not None:
        found = torch.ops.fgrl.linear_logprobs_backward(
            *inputs, *options, statistics, cast, logprobs_grad, entropy_grad, wants
        )
        for index, wanted, grad in zip((0, 1, 3), wants, found, strict=True):
            result[index] = grad if wanted else None
    return tuple(result)


torch.library.register_autograd("fgrl::linear_logprobs", _formula, setup_context=_setup_context, lib=LIBRARY)
