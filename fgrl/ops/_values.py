"""Checks of the values in a tensor, as far as they are wanted, and the memory of what has been checked.

On the CPU a value is in reach, so it is read and a bad one is a ValueError. Elsewhere reading it would make the host
wait: one kernel asserts it on the device (kernels/checks.py), and a tensor that has passed is not checked again until
it is written to. While torch.compile traces, and on a GPU without Triton, the assertion is made of PyTorch's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from fgrl import _settings, backend, extension
from fgrl.ops._library import LIBRARY, launch_with_triton

Checks = Literal["on", "off"]

LIBRARY.define("is_binary(Tensor values) -> bool")
LIBRARY.define(
    "check_range(Tensor values, Tensor? mask, Tensor? bound, Scalar low, Scalar high, bool binary, str message) -> ()"
)
LIBRARY.define("check_offsets(Tensor offsets, int length, str message) -> ()")
launch_with_triton("check_range", "checks")
launch_with_triton("check_offsets", "checks")

_READ_BY_CPP = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64)


@contextmanager
def checks(mode: Checks) -> Iterator[None]:
    """Check the values of arguments inside the `with` block, or leave that to the caller.

    "on", the default, checks that masks hold 0 and 1, that `cu_seqlens` are offsets, that targets are in the
    vocabulary, that `lam` is in [0, 1] and that normalizers are counts. "off" is for callers who know it: shapes,
    dtypes and devices are checked all the same, but a wrong value gives a wrong result, and wrong offsets or targets
    read memory that is not theirs. A function compiled with torch.compile is compiled again for each of the two.

    On the CPU a bad value is a ValueError, each time. On a GPU each check is one kernel, and no synchronisation. A
    tensor that has been checked is remembered until it is freed or written to through PyTorch: the ops of a training
    step that get the same mask check it once. What PyTorch does not see, such as the replay of a CUDA graph or a kernel
    of the caller's that writes into it, is not checked again. During the capture of a CUDA graph a check becomes a part
    of the graph, unless the tensor was checked before.

    A failed assertion on a GPU is final: it is reported at the next synchronisation as "device-side assert triggered"
    or an illegal instruction, every later CUDA call of the process fails, and the process has to be started again. The
    sentence that names the argument is on stderr. To see which call it was, run with CUDA_LAUNCH_BLOCKING=1, or on the
    CPU.

    Args:
        mode: "on" or "off".

    Raises:
        ValueError: any other mode.

    Example:
        >>> import torch, fgrl
        >>> with fgrl.checks("off"):
        ...     fgrl.ops.gae(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[1, 1]])).advantages
        tensor([[1.9500, 1.0000]])
    """
    if mode not in get_args(Checks):
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(get_args(Checks))}")
    token = _settings.requested_checks.set(mode)
    try:
        yield
    finally:
        _settings.requested_checks.reset(token)


class _Passed(NamedTuple):
    """A check that a tensor has passed: at which version of it, and under which mask."""

    version: int
    mask: TensorWeakRef | None
    mask_version: int


_PASSED = WeakTensorKeyDictionary()  # of each tensor: a dict from what was checked to `_Passed`


def check_binary(values: Tensor, message: str) -> None:
    """Raise ValueError with `message`, or assert on the device, unless all values are 0 or 1."""
    if values.dtype == torch.bool or not _is_due(values, ("binary",)):
        return
    if _has_kernels(values):
        torch.ops.fgrl.check_range(values, None, None, 0, 1, True, message)
    elif _is_readable(values) and values.is_contiguous() and values.dtype in _READ_BY_CPP and extension.available():
        _require(torch.ops.fgrl.is_binary(values), message)
    else:
        _require(((values == 0) | (values == 1)).all(), message)


def check_range(
    values: Tensor, low: float, high: float, message: str, *, mask: Tensor | None = None, bound: Tensor | None = None
) -> None:
    """Raise, or assert, unless values are in [low, high], or in [low, bound) with a 0-d `bound`.

    Where `mask` is 0 they may be anything.
    """
    if not _is_due(values, ("range", low, high, message), mask, is_remembered=bound is None):
        return
    if _has_kernels(values):
        torch.ops.fgrl.check_range(values, mask, bound, low, high, False, message)
        return
    is_good = (values >= low) & ((values <= high) if bound is None else (values < bound))
    _require((is_good if mask is None else is_good | (mask == 0)).all(), message)


def check_offsets(offsets: Tensor, length: int, name: str) -> None:
    """Raise, or assert, unless `offsets`, cu_seqlens of `name`, begin at 0, never decrease and end at `length`."""
    if not _is_due(offsets, ("offsets", length)):
        return
    if _has_kernels(offsets):
        message = f"cu_seqlens does not go from 0 to the length of {name} without decreasing; it must"
        torch.ops.fgrl.check_offsets(offsets, length, message)
    elif _is_readable(offsets):
        listed = offsets.tolist()
        _require(listed[0] == 0, "cu_seqlens does not start at 0; it must")
        _require(listed == sorted(listed), "cu_seqlens decreases; its offsets must not")
        _require(listed[-1] == length, f"cu_seqlens does not end at {length}, the length of {name}; it must")
    else:
        _require(offsets[0] == 0, "cu_seqlens does not start at 0; it must")
        _require((offsets.diff() >= 0).all(), "cu_seqlens decreases; its offsets must not")
        _require(offsets[-1] == length, f"cu_seqlens does not end at {length}, the length of {name}; it must")


def _require(condition: Tensor | bool, message: str) -> None:
    """Raise ValueError with `message` unless the 0-d bool tensor `condition` is true, where that can be read."""
    if isinstance(condition, Tensor) and not _is_readable(condition):
        torch._assert_async(condition, message)
    elif not condition:
        raise ValueError(message)


def _is_due(values: Tensor, key: tuple[Any, ...], mask: Tensor | None = None, *, is_remembered: bool = True) -> bool:
    """Whether a check has to be made; if so, it counts as passed from now on, because a failed one ends the process."""
    if _settings.checks == "off" or values.device.type == "meta":
        return False
    if torch.compiler.is_compiling() or _is_readable(values) or not is_remembered:
        return True
    if values.is_inference() or (mask is not None and mask.is_inference()):
        return True  # their versions are not counted
    now = _Passed(values._version, None if mask is None else TensorWeakRef(mask), 0 if mask is None else mask._version)
    passed = _PASSED.setdefault(values, {})
    before = passed.get(key)
    passed[key] = now
    if before is None or (before.version, before.mask_version) != (now.version, now.mask_version):
        return True
    return mask is not None and (before.mask is None or before.mask() is not mask)


def _is_readable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _has_kernels(tensor: Tensor) -> bool:
    return not torch.compiler.is_compiling() and backend.has_kernels(tensor.device)


def _nothing(*_: Any) -> None:
    return None


_register: Callable[..., Any] = torch.library.register_fake
_register("fgrl::check_range", _nothing, lib=LIBRARY)
_register("fgrl::check_offsets", _nothing, lib=LIBRARY)
