"""Validation shared by the public ops: one clear sentence that names the argument, what it was and what it must be.

Shapes, dtypes and devices are checked here, on the host. Values are checked by `_values`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from fgrl.ops import _values
from fgrl.types import Aggregation, PPOLossConfig, is_number

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_float(name: str, tensor: Tensor) -> None:
    """`tensor` must be a floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is {describe(tensor)}; it must be a floating-point tensor")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} has dtype {tensor.dtype}; it must be a floating-point tensor")


def check_floats(like_name: str, like: Tensor, **tensors: Tensor) -> None:
    """Each of the tensors must be floating-point, with the shape and device of `like`."""
    check_float(like_name, like)
    for name, tensor in tensors.items():
        check_float(name, tensor)
        check_shape(name, tensor, like.shape, like_name)
        check_device(name, tensor, like_name, like)


def check_optional_floats(like_name: str, like: Tensor, **tensors: Tensor | None) -> None:
    """`check_floats` of those that are not None."""
    check_floats(like_name, like, **{name: tensor for name, tensor in tensors.items() if tensor is not None})


def check_shape(name: str, tensor: Tensor, shape: Sequence[int], like_name: str) -> None:
    """`tensor` must have exactly `shape`, which is that of `like_name`."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is {describe(tensor)}; it must be a tensor of shape {list(shape)} like {like_name}")
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must have {list(shape)} like {like_name}")


def check_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """`tensor` must be on the device of `like`."""
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {like.device} like {like_name}")


def check_mask(name: str, mask: Tensor | None, like_name: str, like: Tensor) -> None:
    """`mask` must have the shape and device of `like`; bool, or 0/1 of any dtype."""
    if mask is None:
        return
    check_shape(name, mask, like.shape, like_name)
    check_device(name, mask, like_name, like)
    _values.check_binary(mask, f"{name} has values other than 0 and 1; it must be bool, or 0/1")


def check_sequences(name: str, tensor: Tensor, cu_seqlens: Tensor | None) -> int:
    """Check that `tensor` is `[B, T]`, or packed `[N]` with a sound `cu_seqlens [B + 1]`; return B."""
    if cu_seqlens is not None:
        return check_packed(name, tensor, cu_seqlens)
    if tensor.ndim != 2:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}; it must be [B, T], or packed [N] together with cu_seqlens"
        )
    return tensor.shape[0]


def check_packed(name: str, tensor: Tensor, cu_seqlens: Tensor) -> int:
    """Check that `tensor` is packed `[N]` with a sound `cu_seqlens [B + 1]`; return B."""
    if tensor.ndim != 1:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; with cu_seqlens it must be packed [N]")
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.ndim != 1 or cu_seqlens.numel() < 1:
        raise ValueError(f"cu_seqlens is {describe(cu_seqlens)}; it must be a 1-D tensor of B + 1 offsets")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens has dtype {cu_seqlens.dtype}; it must be int32 or int64")
    check_device("cu_seqlens", cu_seqlens, name, tensor)
    _values.check_offsets(cu_seqlens, tensor.shape[0], name)
    return cu_seqlens.numel() - 1


def check_per_sequence(name: str, tensor: Tensor | None, batch: int, like_name: str, like: Tensor) -> None:
    """`tensor`, when given, must be floating-point `[B]` on the device of `like`."""
    if tensor is None:
        return
    check_float(name, tensor)
    if tensor.shape != (batch,):
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be [{batch}], one entry a sequence")
    check_device(name, tensor, like_name, like)


def check_unit_interval(name: str, value: float) -> None:
    """`value` must be a number in [0, 1]."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; it must be a number in [0, 1]")


def check_lam(lam: float | Tensor, batch: int, like_name: str, like: Tensor) -> None:
    """`lam` must be in [0, 1]: a number, or a tensor `[B]`."""
    if isinstance(lam, Tensor):
        check_per_sequence("lam", lam, batch, like_name, like)
        _values.check_range(lam, 0.0, 1.0, "lam has entries outside [0, 1]; all must be in it")
    else:
        check_unit_interval("lam", lam)


def check_positive(name: str, value: float) -> None:
    """`value` must be a finite number greater than 0."""
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name} is {value!r}; it must be a finite number greater than 0")


def check_count(name: str, value: int) -> None:
    """`value` must be a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")


def check_finite(name: str, value: float) -> None:
    """`value` must be a finite number."""
    if not (is_number(value) and -math.inf < value < math.inf):
        raise ValueError(f"{name} is {value!r}; it must be a finite number")


def check_normalizer(normalizer: float | Tensor | None) -> None:
    """`normalizer`, when given, must be a positive number, or a 0-d tensor of at least 0 (a fully masked batch)."""
    if isinstance(normalizer, Tensor):
        if normalizer.numel() != 1:
            raise ValueError(f"normalizer has shape {list(normalizer.shape)}; it must be a number or a 0-d tensor")
        _values.check_range(normalizer, 0.0, math.inf, "normalizer is negative or NaN; it must be a count")
    elif normalizer is not None:
        check_positive("normalizer", normalizer)


def check_config(config: PPOLossConfig) -> None:
    """`config` must be a `PPOLossConfig`, which has checked its own fields."""
    if not isinstance(config, PPOLossConfig):
        raise ValueError(f"config is {describe(config)}; it must be a PPOLossConfig")


def check_integers(name: str, tensor: Tensor) -> None:
    """`tensor` must be an integer tensor; a bool is none."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is {describe(tensor)}; it must be an integer tensor")
    if tensor.dtype not in _INTEGERS:
        raise ValueError(f"{name} has dtype {tensor.dtype}; it must be an integer tensor")


def check_choice(name: str, value: object, options: Sequence[str]) -> None:
    """`value` must be one of `options`."""
    if value not in options:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(options)}")


def check_aggregation(aggregation: str, name: str, tensor: Tensor, cu_seqlens: Tensor | None) -> None:
    """`tensor` must be `[B, T]` or packed `[N]`, the latter with `cu_seqlens` for the seq-* aggregations."""
    if cu_seqlens is not None:
        check_packed(name, tensor, cu_seqlens)
    elif tensor.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be [B, T], or packed [N]")
    elif aggregation.startswith("seq-") and tensor.ndim != 2:
        raise ValueError(
            f"cu_seqlens is None and {name} has shape {list(tensor.shape)}; "
            f"for aggregation {aggregation!r} it must be [B, T], or packed [N] with cu_seqlens"
        )


def check_reduction(
    aggregation: str, name: str, tensor: Tensor, cu_seqlens: Tensor | None, normalizer: float | Tensor | None
) -> None:
    """`aggregation` must be known and fit `tensor`, see `check_aggregation`, and `normalizer` be a count."""
    check_choice("aggregation", aggregation, get_args(Aggregation))
    check_aggregation(aggregation, name, tensor, cu_seqlens)
    check_normalizer(normalizer)


def check_loss_layout(config: PPOLossConfig, name: str, tensor: Tensor, cu_seqlens: Tensor | None) -> None:
    """`check_aggregation`, and the same where tokens depend on their sequence."""
    check_aggregation(config.aggregation, name, tensor, cu_seqlens)
    if config.needs_sequences and cu_seqlens is None and tensor.ndim != 2:
        is_about_loss = config.importance_level == "token"
        option = f"loss {config.loss!r}" if is_about_loss else f"importance_level {config.importance_level!r}"
        raise ValueError(
            f"cu_seqlens is None and {name} has shape {list(tensor.shape)}; "
            f"for {option} it must be [B, T], or packed [N] with cu_seqlens"
        )


def describe(value: object) -> str:
    """What `value` is, for an error."""
    return (
        f"a {value.dtype} tensor of shape {list(value.shape)}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )
