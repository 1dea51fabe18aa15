"""Interleaved timing, and what a result must say about where it was measured."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fgrl import extension


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each variant over `rounds` rounds, in each of which every variant runs once.

    Interleaving exposes all variants to the same disturbances; one round before the first warms caches. For variants
    of one thread `clock=time.thread_time` leaves out the time that other processes took.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, run in variants.items():
            start = clock()
            run()
            if round_ > 0:
                times[name].append(clock() - start)
    return {name: median(values) for name, values in times.items()}


def environment(*packages: str) -> dict[str, Any]:
    """Processor, versions and commit."""
    versions = {name: _version(name) for name in ("torch", *packages)}
    return {
        "cpu": _cpu(),
        "cpu_capability": {"fgrl": extension.cpu_capability(), "torch": torch.backends.cpu.get_cpu_capability()},
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "commit": _commit(),
        **versions,
    }


def processor(environment: Mapping[str, Any]) -> str:
    """The device of a result, and for a CPU the vector instructions its ops ran on, where the result says so."""
    name = str(environment["device"] if "device" in environment else environment["cpu"])
    capability = environment.get("cpu_capability")
    if capability is None or name != environment.get("cpu"):
        return name
    ours = f"C++ on {capability['fgrl']}, " if capability["fgrl"] else ""
    return f"{name} ({ours}PyTorch on {capability['torch'].lower()})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
