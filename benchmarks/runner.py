"""Runs a suite: every case of every op in turn, the results on disk after each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, measure, results, tables
from benchmarks.registry import Op, Shape, Unavailable, registry


def run(
    suite: str, ops: Sequence[str], device: torch.device, out: Path, limit: float = float("inf")
) -> results.Results:
    """Measure the named ops, print a table of each, and keep `results.json` in `out` up to date.

    Args:
        suite: which shapes and how much effort.
        ops: names; none means all.
        device: where.
        out: folder of the results.
        limit: seconds after which no further case is begun.
    """
    start = time.monotonic()
    chosen = [registry()[name] for name in ops or registry()]
    dtypes = {shape.dtype for op in chosen for shape in op.shapes[suite] if shape.dtype.is_floating_point}
    found: results.Results = {
        "suite": suite,
        "environment": machine.describe(device),
        "ceilings": machine.ceilings(device, dtypes),
        "cases": [],
        "skipped": [],
    }
    for op in chosen:
        print(f"\n{op.name}", flush=True)
        for shape in op.shapes[suite]:
            if time.monotonic() - start > limit:
                found["skipped"].append(f"{op.name} {shape.label}: out of time")
                continue
            _add_case(found, op, shape, device, suite)
            results.save(found, out / "results.json")
        if op.detail is not None and suite == "cpu":
            found[op.name] = op.detail(False)
            results.save(found, out / "results.json")
        print(tables.text(tables.op_table(found, op.name)), flush=True)
    for line in found["skipped"]:
        print(f"skipped {line}")
    return found


def is_right(found: results.Results) -> bool:
    """Whether every case of ours was, and none was lost."""
    ours = [case["variants"].get(measure.OURS, {"status": "ok"}) for case in found["cases"]]
    return not found["skipped"] and all(cell["status"] == "ok" for cell in ours)


def _add_case(found: results.Results, op: Op, shape: Shape, device: torch.device, suite: str) -> None:
    try:
        case: dict[str, Any] = measure.measure(op, shape, device, measure.EFFORTS[suite])
    except Unavailable as unavailable:
        print(f"  {shape.label}: {unavailable}")
    except Exception as error:  # one case that cannot be set up or does not fit must not cost the others
        found["skipped"].append(f"{op.name} {shape.label}: {type(error).__name__}: {error}"[:300])
    else:
        found["cases"].append(case)
