"""Public op: log-probabilities straight from hidden states and the LM head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._library import LIBRARY
from fgrl.ops._linear import Gradients, LinearRows, Statistics, fake_gradients, implement
from fgrl.types import compute_dtype

INPUTS = (
    "Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, Tensor? mask, float temperature, float? softcap, "
    "Tensor? shard, str? group"
)
LIBRARY.define(f"linear_logprobs({INPUTS}) -> (Tensor logprobs, Tensor entropy, Tensor statistics)")
LIBRARY.define(
    f"linear_logprobs_backward({INPUTS}, Tensor statistics, Tensor? logprob_slopes, Tensor? entropy_slopes, "
    "bool[3] wants) -> (Tensor hidden_grad, Tensor weight_grad, Tensor bias_grad)"
)


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
    process_group: Any = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probability of each target token, and on request the entropy, from the last hidden states.

    `z = W h + b`, soft-capped as `softcap * tanh(z / softcap)`, divided by `temperature`; then
    `logp = z_target - logsumexp(z)`. Differentiable in hidden, weight and bias.

    There are never more logits than `FGRL_CHUNK_MB` has room for (environment; default 64 MiB on the CPU, 1024 on a
    GPU): the backward pass computes them again. They are fp32 before the softmax also for bf16 and fp16 input.

    Args:
        hidden: `[N, D]` or `[B, T, D]`; fp32, bf16 or fp16. The state at the position that *predicts* the target.
        weight: `[V, D]`, the LM head.
        targets: `[N]` or `[B, T]`, int32 or int64; any value is allowed where the mask is false.
        bias: `[V]`.
        temperature: the sampling temperature, greater than 0; applied after the soft-cap.
        softcap: logit soft-cap (Gemma 2: 30), greater than 0.
        mask: shape of `targets`, bool or 0/1. Rows with mask 0 are never multiplied. Finding the others makes the
            host wait for the GPU, once; rows that are packed already and no mask do not.
        return_entropy: also return the entropy (nats) of each row's distribution.
        process_group: the processes over which the vocabulary is split (tensor parallelism). `weight` and `bias` are
            then this process's words, those of lower ranks before them, of any number; all else is the same on each.
            The gradient by `hidden` is that of the whole vocabulary, those by `weight` and `bias` are the local ones.

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
    shard = check_linear_inputs(hidden, weight, targets, bias, temperature, softcap, mask, process_group)
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
            process_group=process_group,
        )
    logprobs, entropy, _ = torch.ops.fgrl.linear_logprobs(
        hidden,
        weight,
        targets,
        bias,
        mask,
        float(temperature),
        None if softcap is None else float(softcap),
        shard,
        group_name(process_group),
    )
    return (logprobs, entropy) if return_entropy else logprobs


def check_linear_inputs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    mask: Tensor | None,
    process_group: Any,
) -> Tensor | None:
    """Validation that `linear_logprobs` and `linear_ppo_loss` share; what `vocabulary_shard` says, for a group."""
    _checks.check_float("hidden", hidden)
    if hidden.ndim not in (2, 3):
        raise ValueError(f"hidden has shape {list(hidden.shape)}; it must be [N, D] or [B, T, D]")
    _checks.check_float("weight", weight)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be [V, {hidden.shape[-1]}] like hidden")
    if weight.numel() == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must have at least one word and one column")
    _checks.check_device("weight", weight, "hidden", hidden)
    _checks.check_shape("targets", targets, hidden.shape[:-1], "hidden without its last dimension")
    if targets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"targets has dtype {targets.dtype}; it must be int32 or int64")
    _checks.check_device("targets", targets, "hidden", hidden)
    vocabulary = weight.shape[0]
    if bias is not None:
        _checks.check_float("bias", bias)
        _checks.check_shape("bias", bias, (vocabulary,), "weight's first dimension")
        _checks.check_device("bias", bias, "hidden", hidden)
    _checks.check_positive("temperature", temperature)
    if softcap is not None:
        _checks.check_positive("softcap", softcap)
    _checks.check_mask("mask", mask, "targets", targets)
    group = group_name(process_group)
    shard = None if group is None else torch.ops.fgrl.vocabulary_shard(weight, group)
    inside = (targets >= 0) & (targets < (vocabulary if shard is None else shard[1]))
    if mask is not None:
        inside = inside | (mask == 0)
    whole = f"[0, {vocabulary})" if shard is None else "that of all processes"
    _checks.check_values(inside.all(), f"targets has ids outside the vocabulary; they must be in {whole}")
    return shard


def group_name(process_group: Any) -> str | None:
    """The name by which an operator finds the group again."""
    if process_group is not None and not hasattr(process_group, "group_name"):
        kind = type(process_group).__name__
        raise ValueError(f"process_group is a {kind}; it must be a torch.distributed.ProcessGroup")
    return None if process_group is None else process_group.group_name


def _forward(hidden: Tensor, weight: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = LinearRows(hidden, weight, targets, *rest)
    logprobs, entropy, statistics = rows.empty(), rows.empty(), rows.empty(3)
    for chunk in rows.chunks():
        logprobs[chunk.places], found = rows.statistics(chunk)
        entropy[chunk.places] = found.entropy()
        statistics[:, chunk.places] = torch.stack(found)
    return logprobs.reshape(targets.shape), entropy.reshape(targets.shape), statistics


def _backward(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    """Four products with the forward's: the logits once more, then the gradients by hidden states and head."""
    *options, statistics, logprob_slopes, entropy_slopes, wants = rest
    rows = LinearRows(hidden, weight, targets, bias, *options)
    gradients = Gradients(rows, wants, dtypes(hidden, weight, bias))
    slopes = [None if slope is None else slope.reshape(-1) for slope in (logprob_slopes, entropy_slopes)]
    for chunk in rows.chunks():
        found = Statistics(*statistics[:, chunk.places])
        gradients.add(chunk, found, *(None if slope is None else slope[chunk.places] for slope in slopes))
        del chunk  # its logits are not needed beside the result
    return gradients.result(hidden.shape)


implement("linear_logprobs", _forward)
implement("linear_logprobs_backward", _backward)


@torch.library.register_fake("fgrl::linear_logprobs", lib=LIBRARY)
def _forward_fake(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(hidden, weight, bias)
    logprobs, entropy = (hidden.new_empty(targets.shape, dtype=dtype) for _ in range(2))
    return logprobs, entropy, hidden.new_empty(3, targets.numel(), dtype=dtype)


@torch.library.register_fake("fgrl::linear_logprobs_backward", lib=LIBRARY)
def _backward_fake(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    return fake_gradients(hidden, weight, rest[-1], dtypes(hidden, weight, bias))


def dtypes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[torch.dtype]:
    return [hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, bias, mask, temperature, softcap, shard, group = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, targets, bias, mask, shard, output[2])
    ctx.options = temperature, softcap, group


@once_differentiable
def _formula(ctx: Any, logprobs: Tensor | None, entropy: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    *inputs, shard, statistics = ctx.saved_tensors
    temperature, softcap, group = ctx.options
    wants = [ctx.needs_input_grad[place] for place in (0, 1, 3)]
    result: list[Tensor | None] = [None] * 9
    if logprobs is not None or entropy is not None:
        found = torch.ops.fgrl.linear_logprobs_backward(
            *inputs, temperature, softcap, shard, group, statistics, logprobs, entropy, wants
        )
        for place, wanted, gradient in zip((0, 1, 3), wants, found, strict=True):
            result[place] = gradient if wanted else None
    return tuple(result)


torch.library.register_autograd("fgrl::linear_logprobs", _formula, setup_context=_setup_context, lib=LIBRARY)
