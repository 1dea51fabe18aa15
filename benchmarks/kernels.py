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
    """What one kernel of one case takes on one target. Bytes, except registers (a thread) and warps (a program).

    `instructions` are those of the whole program and `loop` those of its longest loop, each counted once.
    `fp64`, `shuffles` (between threads of a warp) and `barriers` are counts in the loop and in all, as "2/10". `loads`
    are the widths in bits of the loads from global memory, each with its number, as "128x4 8x1".
    """

    op: str
    case: str
    kernel: str
    target: str
    warps: int = 0
    registers: int = 0
    stack: int = 0
    shared: int = 0
    binary: int = 0
    instructions: int = 0
    loop: int = 0
    fp64: str = "0"
    shuffles: str = "0"
    barriers: str = "0"
    loads: str = ""
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


class _Listing(NamedTuple):
    """How an instruction set writes what the report counts: one regular expression each."""

    instruction: str
    """One instruction a line; group 1 is its address or its label, group 2 the instruction."""
    fp64: str
    shuffle: str
    barrier: str
    load: str
    """Group 1 is the width of a load from global memory."""
    widths: dict[str, int]
    """In bits, by the width's name."""


_SASS = _Listing(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);",
    r"\b(D(ADD|MUL|FMA|SETP|MNMX)|MUFU\.\w*64H|F2F\.F64|F2F\.F32\.F64|I2F\.F64)",
    r"\b(SHFL|REDUX)\b",
    r"\b(BAR\.|WARPSYNC)",
    r"\bLDG\.E(?:\.\w+)*?(?:\.(128|64|U16|U8|S16|S8))?(?:\.\w+)*\b",
    {"128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8, "": 32},
)
_GCN = _Listing(
    r"^(?:(\.LBB\w+):|\s+([a-z]\w+.*))",
    r"^v_(?!cmp_class)\w*f64",
    r"^(ds_(b?permute|swizzle)|v_\w+_dpp|v_permlane)",
    r"^s_barrier",
    r"^(?:global|buffer|flat)_load_(dwordx4|dwordx3|dwordx2|dword|[su]short|[su]byte)",
    {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "ushort": 16, "sshort": 16, "ubyte": 8, "sbyte": 8},
)


def _resources(kernel: Any) -> dict[str, Any]:
    """Registers and stack from the binary of an NVIDIA kernel, from the assembly's metadata of an AMD one."""
    if "cubin" in kernel.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            text, listing = (
                subprocess.run(
                    [triton.knobs.nvidia.cuobjdump.path, option, file.name], capture_output=True, text=True, check=True
                ).stdout
                for option in ("-res-usage", "-sass")
            )
        registers, stack = (_number(rf"\b{field}:(\d+)", text) for field in ("REG", "STACK"))
        stack += _number(r"\bLOCAL:(\d+)", text)
        counts = _count(listing, _SASS)
    else:
        text = kernel.asm["amdgcn"]
        registers = _number(r"\.vgpr_count:\s+(\d+)", text)
        stack = _number(r"\.private_segment_fixed_size:\s+(\d+)", text)
        stack += 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", text)
        counts = _count(text.partition("s_endpgm")[0], _GCN)
    return {
        "warps": kernel.metadata.num_warps,
        "registers": registers,
        "stack": stack,
        "shared": kernel.metadata.shared,
        "binary": len(kernel.kernel),
        **counts,
    }


def _count(text: str, listing: _Listing) -> dict[str, Any]:
    """The instructions of an assembly listing by kind, in the longest loop and in all."""
    instructions: list[str] = []
    positions: dict[str, int] = {}  # of an address or a label
    for label, instruction in re.findall(listing.instruction, text, re.MULTILINE):
        if label:
            positions[label.lstrip("0") or "0"] = len(instructions)
        if instruction:
            instructions.append(instruction)
    begin = end = 0
    for place, instruction in enumerate(instructions):
        jump = re.search(r"\bBRA(?:\.\w+)*\b.*?0x([0-9a-f]+)|^s_c?branch\w* (\.LBB\w+)", instruction)
        target = positions.get(jump[1] or jump[2], place) if jump else place
        if place + 1 - target > max(end - begin, 1):
            begin, end = target, place + 1
    loop = instructions[begin:end]

    def count(pattern: str) -> str:
        inside, whole = (sum(bool(re.search(pattern, line)) for line in lines) for lines in (loop, instructions))
        return f"{inside}/{whole}" if whole else "0"

    widths: dict[int, int] = {}
    for line in instructions:
        if match := re.search(listing.load, line):
            width = listing.widths[match[1] or ""]
            widths[width] = widths.get(width, 0) + 1
    return {
        "instructions": len(instructions),
        "loop": len(loop),
        "fp64": count(listing.fp64),
        "shuffles": count(listing.shuffle),
        "barriers": count(listing.barrier),
        "loads": " ".join(f"{width}x{number}" for width, number in sorted(widths.items(), reverse=True)),
    }


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"no {pattern} in what the compiler reports")
    return int(match[1])


def table(usages: Sequence[Usage]) -> str:
    """The report: a line a kernel and target, `SPILLS` or the error on the lines that have one."""
    counts = Usage._fields[Usage._fields.index("warps") : Usage._fields.index("error")]
    header = ("kernel", "case", "target", *counts)
    rows = [(u.kernel, f"{u.op}: {u.case}", u.target, *(str(getattr(u, name)) for name in counts)) for u in usages]
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
