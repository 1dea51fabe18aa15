"""The machine: what it is, and how fast it copies and multiplies, which are the ceilings of every floor."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers, timing

_COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
_SMALL_MATRIX = 256
_MATRIX = {"cpu": 2048, "cuda": 8192}
_UNKNOWN_CACHE = 32 << 20


def describe(device: torch.device) -> dict[str, Any]:
    """What a result must say about where it was measured."""
    found = timing.environment("triton", "numpy")
    found |= {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": found["cpu"],
        "system": platform.platform(terse=True),
        "peers": peers.versions(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "driver": _driver(),
            "cuda": torch.version.cuda or torch.version.hip,
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
        }
    return found


def cache_bytes(device: torch.device) -> int:
    """Size of the last-level cache, past which inputs are rotated."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [file.read_text(encoding="ascii").strip() for file in files]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes), default=_UNKNOWN_CACHE)


@cache
def copy_rate(device: torch.device) -> float:
    """Bytes a second of a copy past the caches, both directions counted: the best of a few."""
    size = _COPY_BYTES[device.type] // 4
    source, target = torch.ones(size, device=device), torch.zeros(size, device=device)
    return 2 * 4 * size / _best(lambda: target.copy_(source), device)


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square product.

    Less large where a product would take over a second: bf16 on a CPU without instructions for it is that slow.
    """
    size, rate = _SMALL_MATRIX, 0.0
    while True:
        a = torch.randn(size, size, device=device).to(dtype)
        rate = 2 * size**3 / _best(lambda a=a: a @ a, device)
        larger = min(2 * size, _MATRIX[device.type])
        if larger == size or 2 * larger**3 > rate:
            return rate
        size = larger


def ceilings(device: torch.device, dtypes: set[torch.dtype]) -> dict[str, Any]:
    """The rates in the form of the results."""
    products = {str(dtype).removeprefix("torch."): matmul_rate(device, dtype) for dtype in sorted(dtypes, key=str)}
    return {"bytes_per_second": copy_rate(device), "flops_per_second": products}


def _best(run: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    times = []
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="ascii")
    except OSError:
        return "unknown"
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found[0] if found else "unknown"
