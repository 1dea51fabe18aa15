"""What the launchers share: dtypes, devices, and how a kernel file lists its launches for the resource report.

A launcher takes the operator's arguments in the schema's order. What decides how the work is split (block sizes, the
number of programs) follows as keyword-only arguments whose defaults are what ships; tests pass others.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor


class Case(NamedTuple):
    """One call of a launcher, on tensors of the meta device, that `python -m benchmarks.kernels` compiles.

    Each kernel file yields its cases from a function `aot_cases()`. The report calls the launcher itself and compiles
    whatever it launches, so that the two always agree; and as meta tensors hold nothing, a launcher that would
    read a value on the host, and so wait for the GPU, fails there.
    """

    label: str
    launcher: Callable[..., Any]
    arguments: tuple[Any, ...]


FUSION = {"enable_fp_fusion": True}
"""A launch option of every kernel: a product and a sum may be one instruction with one rounding, which is more accurate
and faster. No kernel relies on two roundings. It is set because Triton 3.10 changes its default."""


def flat(tensor: Tensor | None) -> Tensor | None:
    """A tensor as `[N]`, contiguous, which `reshape(-1)` alone does not make it."""
    return None if tensor is None else tensor.contiguous().view(-1)


def flags(mask: Tensor | None) -> Tensor | None:
    """A mask flat and contiguous, bool as bytes: where it is not 0, a token is valid."""
    mask = flat(mask)
    return mask.view(torch.uint8) if mask is not None and mask.dtype == torch.bool else mask


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one, on which Triton launches."""
    if tensor.device.type in ("cpu", "meta"):
        return nullcontext()
    return torch.accelerator.device_index(tensor.device.index)


def programs_for(blocks: int, device: torch.device, per_multiprocessor: int, max_programs: int | None) -> int:
    """Programs that share `blocks` of work: enough to fill the device, `max_programs` at most, and at least one."""
    limit = per_multiprocessor * multiprocessors(device) if max_programs is None else max_programs
    return max(1, min(blocks, limit))


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors the device has (an H100's without a device): what a grid has to fill."""
    return 132 if device.type in ("cpu", "meta") else _multiprocessors(device)


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return triton.runtime.driver.active.utils.get_device_properties(device.index)["multiprocessor_count"]
