"""What every Triton kernel costs in registers, stack, shared memory and code, compiled ahead of time: needs no GPU.

    python -m benchmarks.kernels [OP ...] [--targets sm_90 gfx942] [--json FILE]

Each file of kernels/ names calls of its launchers in `aot_cases()`. They run here on meta tensors with Triton's launch
replaced by its compiler, so what is measured is what the launchers launch. A stack is spilled registers, which no
kernel may have; the exit status says whether one has, or did not compile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import fgrl.kernels
from fgrl.data.output import write_text

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Usage(NamedTuple):
    """What one kernel of one case takes on one target. Bytes, except registers (a thread) and warps (a program)."""

    op: str
    case: str
    kernel: str
    target: str
    warps: int = 0
    registers: int = 0
    stack: int = 0
    shared: int = 0
    binary: int = 0
    error: str = ""

    @property
    def is_sound(self) -> bool:
        """Compiled, and without spills."""
        return not self.error and self.stack == 0


def modules() -> dict[str, ModuleType]:
    """The kernel files by name."""
    names = [module.name for module in pkgutil.iter_modules(fgrl.kernels.__path__)]
    return {name: import_module(f"fgrl.kernels.{name}") for name in names if not name.startswith("_")}


def sweep(names: Sequence[str] = (), targets: Sequence[str] = (), workers: int | None = None) -> list[Usage]:
    """The usage of every kernel of the named files (default: all) on the named targets (default: all), in order."""
    found = modules()
    tasks = [
        (name, index, target)
        for name in names or found
        for index in range(len(list(found[name].aot_cases())))
        for target in targets or TARGETS
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as pool:
        return [usage for usages in pool.map(compile_case, *zip(*tasks, strict=True)) for usage in usages]


def compile_case(name: str, index: int, target: str) -> list[Usage]:
    """The usage of each kernel that one case of one file launches, compiled for one target."""
    case = list(modules()[name].aot_cases())[index]
    try:
        with _compiling_for(target) as compiled:
            case.launcher(*case.arguments)
    except Exception as error:  # whatever a compiler raises becomes a row of the report
        while error.__cause__ is not None:  # Triton wraps the reason in a listing of the kernel
            error = error.__cause__
        return [Usage(name, case.label, "?", target, error=f"{type(error).__name__}: {error}")]
    return [Usage(name, case.label, kernel.name, target, **_resources(kernel)) for kernel in compiled]


class _NoDevice:
    """As much of a Triton driver as compiling takes. The "device" is the target, by which Triton keeps its kernels."""

    def __init__(self, target: str) -> None:
        self._target = target

    def get_current_device(self) -> str:
        return self._target

    def get_current_stream(self, _: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self._target]


@contextmanager
def _compiling_for(target: str) -> Iterator[list[Any]]:
    """Inside, launching a kernel compiles it for `target` and appends it to the list; nothing runs."""
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.append(kernel)
        return kernel

    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(_NoDevice(target))
    try:
        with mock.patch.object(JITFunction, "run", compile_only):
            yield compiled
    finally:
        triton.runtime.driver.set_active(before)


def _resources(kernel: Any) -> dict[str, int]:
    """Registers and stack from the binary of an NVIDIA kernel, from the assembly's metadata of an AMD one."""
    if "cubin" in kernel.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, stack = (_number(rf"\b{field}:(\d+)", text) for field in ("REG", "STACK"))
        stack += _number(r"\bLOCAL:(\d+)", text)
    else:
        text = kernel.asm["amdgcn"]
        registers = _number(r"\.vgpr_count:\s+(\d+)", text)
        stack = _number(r"\.private_segment_fixed_size:\s+(\d+)", text)
        stack += 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", text)
    return {
        "warps": kernel.metadata.num_warps,
        "registers": registers,
        "stack": stack,
        "shared": kernel.metadata.shared,
        "binary": len(kernel.kernel),
    }


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"no {pattern} in what the compiler reports")
    return int(match[1])


def table(usages: Sequence[Usage]) -> str:
    """The report: a line a kernel and target, `SPILLS` or the error on the lines that have one."""
    header = ("kernel", "case", "target", "warps", "registers", "stack", "shared", "binary")
    rows = [
        (u.kernel, f"{u.op}: {u.case}", u.target, *map(str, (u.warps, u.registers, u.stack, u.shared, u.binary)))
        for u in usages
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    layout = "  ".join(f"{{:{'<' if place < 3 else '>'}{width}}}" for place, width in enumerate(widths))
    remarks = ["", *(usage.error or "SPILLS" * (usage.stack > 0) for usage in usages)]
    return "\n".join(
        f"{layout.format(*row)}  {remark}".rstrip() for row, remark in zip((header, *rows), remarks, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description="Resources of all Triton kernels."
    )
    parser.add_argument("names", nargs="*", metavar="OP", help=f"default all: {', '.join(modules())}")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--jobs", type=int, help="processes; default: one a core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(modules())):
        parser.error(f"unknown op {unknown[0]!r}; choose from {', '.join(modules())}")
    usages = sweep(args.names, args.targets, args.jobs)
    print(table(usages))
    if args.json:
        write_text(args.json, json.dumps([usage._asdict() for usage in usages], indent=1) + "\n")
    return 0 if all(usage.is_sound for usage in usages) else 1


if __name__ == "__main__":
    sys.exit(main())
