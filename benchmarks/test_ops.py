"""The registry under pytest-benchmark: `pytest benchmarks/`, with FGRL_SUITE=tiny, quick, cpu or gpu to choose shapes.

The rows are those of `python -m benchmarks run`; `extra_info` has GB/s, TFLOP/s, peak memory and times the floor.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from benchmarks import machine, measure, memory, results
from benchmarks.registry import Op, Shape, Unavailable, registry

SUITE = os.environ.get("FGRL_SUITE", "gpu" if torch.cuda.is_available() else "quick")
DEVICE = torch.device("cuda" if SUITE == "gpu" else "cpu")
EFFORT = measure.EFFORTS[SUITE]


def names(op: Op) -> list[str]:
    return [measure.OURS, measure.EAGER, measure.COMPILED, *op.peers]


CASES = [
    pytest.param(op, shape, name, id=f"{op.name}-{shape.label}-{name}")
    for op in registry().values()
    for shape in op.shapes[SUITE]
    for name in names(op)
]


@pytest.mark.parametrize(("op", "shape", "name"), CASES)
def test_op(op: Op, shape: Shape, name: str, benchmark: Any) -> None:
    torch.compiler.reset()
    try:
        inputs = op.make(shape, DEVICE)
    except Unavailable as unavailable:
        pytest.skip(str(unavailable))
    run = measure.variants(op, shape, inputs, EFFORT)[name]
    if isinstance(run, Unavailable):
        pytest.skip(str(run))
    checked = measure.check(op, shape, DEVICE, {name: run}, inputs, EFFORT)[name]
    assert checked["status"] == "ok", checked["reason"]
    once = measure.Stopwatch(op, inputs, DEVICE).untimed(run)

    def waited() -> None:
        once()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    waited()
    benchmark.group = f"{op.name} {shape.label}"
    benchmark(waited)
    moved, flops = op.floor(inputs).of(op.parts[-1])
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    dtype = str(shape.dtype).removeprefix("torch.")
    rates = machine.ceilings(DEVICE, {shape.dtype} if flops else set())
    case = {"floor": {"both": {"bytes": moved, "flops": flops}}, "dtype": dtype}
    floor = results.floor_seconds({"ceilings": rates}, case, "both")
    benchmark.extra_info |= {
        "GB/s": moved / seconds / 1e9,
        "TFLOP/s": flops / seconds / 1e12,
        "peak_bytes": memory.peak(once, DEVICE),
        "times_the_floor": seconds / floor,
    }
