"""Validation of what the `linear_*` ops share, and their options as the operators take them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgrl import _settings
from fgrl.ops import _checks, _values
from fgrl.ops._linear import LinearOptions
from fgrl.types import autocast_dtype


def check_linear_inputs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    mask: Tensor | None,
    process_group: Any,
    chunk_tokens: int | None,
) -> Tensor | None:
    """Validation that `linear_logprobs` and `linear_ppo_loss` share; what `vocabulary_shard` says, for a group."""
    check_head("", hidden, weight, bias, softcap)
    _checks.check_shape("targets", targets, hidden.shape[:-1], "hidden without its last dimension")
    _checks.check_device("targets", targets, "hidden", hidden)
    check_sampling(temperature, chunk_tokens)
    _checks.check_mask("mask", mask, "targets", targets)
    return check_vocabulary("targets", targets, weight, mask, process_group)


def check_head(prefix: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> None:
    """Check the hidden states, the head, its bias and soft-cap, of arguments whose names begin with `prefix`."""
    _checks.check_float(f"{prefix}hidden", hidden)
    if hidden.ndim not in (2, 3):
        raise ValueError(f"{prefix}hidden has shape {list(hidden.shape)}; it must be [N, D] or [B, T, D]")
    _checks.check_float(f"{prefix}weight", weight)
    shape = list(weight.shape)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"{prefix}weight has shape {shape}; it must be [V, {hidden.shape[-1]}] like {prefix}hidden")
    if weight.numel() == 0:
        raise ValueError(f"{prefix}weight has shape {shape}; it must have at least one row and one column")
    _checks.check_device(f"{prefix}weight", weight, f"{prefix}hidden", hidden)
    if bias is not None:
        _checks.check_float(f"{prefix}bias", bias)
        _checks.check_shape(f"{prefix}bias", bias, weight.shape[:1], f"{prefix}weight's first dimension")
        _checks.check_device(f"{prefix}bias", bias, f"{prefix}hidden", hidden)
    if softcap is not None:
        _checks.check_positive(f"{prefix}softcap", softcap)


def check_sampling(temperature: float, chunk_tokens: int | None) -> None:
    """Check the options of every `linear_*` op."""
    _checks.check_positive("temperature", temperature)
    if chunk_tokens is not None:
        _checks.check_count("chunk_tokens", chunk_tokens)


def check_vocabulary(name: str, ids: Tensor, weight: Tensor, mask: Tensor | None, process_group: Any) -> Tensor | None:
    """Check that token ids are in the vocabulary where `mask` is not 0; what `vocabulary_shard` says, for a group."""
    if ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} has dtype {ids.dtype}; it must be int32 or int64")
    group, vocabulary = group_name(process_group), weight.shape[0]
    shard = None if group is None else torch.ops.fgrl.vocabulary_shard(weight, group)
    whole = f"[0, {vocabulary})" if shard is None else "that of all processes"
    message = f"{name} has ids outside the vocabulary; they must be in {whole}"
    bound = None if shard is None else shard[1]
    _values.check_range(ids, 0, vocabulary - 1, message, mask=mask, bound=bound)
    return shard


def check_support(
    support_ids: Tensor, weight: Tensor, targets: Tensor, mask: Tensor | None, shard: Tensor | None
) -> None:
    """Check the tokens that a sampler had kept, `[*targets.shape, K]`; `shard` is what `vocabulary_shard` says."""
    if not isinstance(support_ids, Tensor) or support_ids.ndim != targets.ndim + 1 or support_ids.shape[-1] == 0:
        shape = list(support_ids.shape) if isinstance(support_ids, Tensor) else f"none, a {type(support_ids).__name__}"
        raise ValueError(f"support_ids has shape {shape}; it must be {[*targets.shape, 'K']} with K of at least 1")
    _checks.check_shape("support_ids", support_ids, (*targets.shape, support_ids.shape[-1]), "targets but for K")
    _checks.check_device("support_ids", support_ids, "targets", targets)
    if support_ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"support_ids has dtype {support_ids.dtype}; it must be int32 or int64")
    if _settings.checks == "off":
        return  # what is checked below is sorted and compared first
    rows = None if mask is None else mask[..., None].expand(support_ids.shape)
    bound = None if shard is None else shard[1]
    whole = f"[0, {weight.shape[0]})" if shard is None else "that of all processes"
    message = f"support_ids has ids outside the vocabulary; they must be in {whole}, or -1"
    _values.check_range(support_ids, -1, weight.shape[0] - 1, message, mask=rows, bound=bound)
    ordered = support_ids.sort(dim=-1).values
    repeats = ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any(-1).int()
    _values.check_range(repeats, 0, 0, "support_ids has an id twice in a row; it must be there once", mask=mask)
    is_kept = (support_ids == targets[..., None]).any(-1).int()
    _values.check_range(is_kept, 1, 1, "targets has tokens that are not in support_ids; they must be", mask=mask)


def linear_options(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    shard: Tensor | None,
    process_group: Any,
    chunk_tokens: int | None,
) -> LinearOptions:
    """The options of a checked call as the operators take them."""
    return LinearOptions(
        float(temperature),
        None if softcap is None else float(softcap),
        shard,
        group_name(process_group),
        chunk_tokens or 0,
        autocast_dtype(hidden.device.type, hidden, weight, bias),
    )


def group_name(process_group: Any) -> str | None:
    """The name by which an operator finds the group again."""
    if process_group is not None and not hasattr(process_group, "group_name"):
        kind = type(process_group).__name__
        raise ValueError(f"process_group is a {kind}; it must be a torch.distributed.ProcessGroup")
    return None if process_group is None else process_group.group_name
