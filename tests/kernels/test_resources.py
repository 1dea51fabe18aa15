"""Every kernel compiles for every target without spilling a register, and the report would say so if one did not."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

import fgrl.kernels
from benchmarks import kernels as report
from fgrl.kernels._launch import Case

FILES = report.modules()
CASES = [
    pytest.param(name, index, id=f"{name}-{case.label}")
    for name, module in FILES.items()
    for index, case in enumerate(module.aot_cases())
]


@pytest.mark.slow
@pytest.mark.parametrize("target", report.TARGETS)
@pytest.mark.parametrize(("name", "index"), CASES)
def test_no_spills(name: str, index: int, target: str) -> None:
    usages = report.compile_case(name, index, target)
    assert usages
    assert all(usage.is_sound for usage in usages), report.table(usages)


@pytest.mark.slow
def test_every_kernel_is_in_the_report() -> None:
    """Costs little after the tests above, whose results Triton has cached."""
    names = [module.name for module in pkgutil.iter_modules(fgrl.kernels.__path__)]
    defined = {
        value.fn.__name__
        for name in names
        for value in vars(import_module(f"fgrl.kernels.{name}")).values()
        if isinstance(value, JITFunction) and value.fn.__name__.endswith("_kernel")
    }
    compiled = {
        usage.kernel
        for name, module in FILES.items()
        for index in range(len(list(module.aot_cases())))
        for usage in report.compile_case(name, index, "sm_90")
    }
    assert defined
    assert defined == compiled


@pytest.mark.parametrize(("name", "index"), CASES)
def test_fp_fusion_is_chosen_and_not_left_to_triton(name: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.10 changes the default, and with it the accuracy and the speed of everything."""
    launches: list[dict[str, object]] = []
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **options: launches.append(options))
    case = list(FILES[name].aot_cases())[index]
    case.launcher(*case.arguments)
    assert launches
    assert all(options.get("enable_fp_fusion") is True for options in launches)


def _with_cases(monkeypatch: pytest.MonkeyPatch, launcher: object) -> None:
    def aot_cases() -> Iterator[Case]:
        yield Case("case", launcher, ())  # type: ignore[arg-type]

    monkeypatch.setattr(FILES["whiten"], "aot_cases", aot_cases)


@triton.jit
def _hoarding_kernel(x_ptr, BLOCK: tl.constexpr):
    """Needs the whole block twice, so it stays in registers."""
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.store(x_ptr + tl.arange(0, BLOCK), x / tl.sum(x, 0))


@pytest.mark.parametrize("target", report.TARGETS)
def test_a_spill_is_reported(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 registers of data a thread, of which NVIDIA may take 32, and AMD as many as leave room for 8 wavefronts."""
    tensor = torch.empty(4096, device="meta", dtype=torch.float64)
    limit = {"waves_per_eu": 8} if target == "gfx942" else {"maxnreg": 32}

    def launcher() -> None:
        _hoarding_kernel[(1,)](tensor, BLOCK=4096 if target == "gfx942" else 2048, num_warps=1, **limit)

    _with_cases(monkeypatch, launcher)
    (usage,) = report.compile_case("whiten", 0, target)
    assert usage.stack > 0
    assert not usage.is_sound
    assert "SPILLS" in report.table([usage])


def test_a_failing_compilation_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.empty(8, device="meta")

    def launcher() -> None:
        FILES["whiten"]._moments_fwd_kernel[(1,)](tensor, tensor, None, 8, 1, BLOCK=3, num_warps=1)

    _with_cases(monkeypatch, launcher)
    (usage,) = report.compile_case("whiten", 0, "sm_90")
    assert not usage.is_sound
    assert "must be a power of 2" in report.table([usage])


def test_a_launcher_that_reads_a_value_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_cases(monkeypatch, lambda: torch.empty((), device="meta").item())
    (usage,) = report.compile_case("whiten", 0, "sm_90")
    assert "meta" in usage.error
