"""Peak memory of a call: what the process, or the GPU, holds at most beyond what it held before."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SMALL, _LARGE = 64 * 1024, 32 * 1024 * 1024
_RESET_PEAK = "5"


def peak(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `run` needs at most, its results included; None where the system does not say.

    On a CPU this is the peak of the resident set, so C++ buffers and the libraries' own count, to the accuracy of some
    100 KB. On a GPU it is what PyTorch's allocator handed out.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = run()
        torch.cuda.synchronize(device)
        del kept
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    try:
        with _no_reuse():
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
            before = _status("VmRSS")
            kept = run()
            after = _status("VmHWM")
            del kept
    except OSError:
        return None
    return max(0, after - before)


@contextmanager
def _no_reuse() -> Iterator[None]:
    """Inside, freed memory goes back to the system, so that the resident set is what is in use."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        raise OSError("the C library is not glibc")
    libc.mallopt(_M_MMAP_THRESHOLD, _SMALL)
    libc.malloc_trim(0)
    try:
        yield
    finally:  # where glibc's own adjustment ends up in a process that uses large blocks
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")
