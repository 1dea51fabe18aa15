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

    The first shape of every op comes before the second of any, so that a run which is stopped has something of each.

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
        "errors": [],
    }
    cases = [(place, op, shape) for op in chosen for place, shape in enumerate(op.shapes[suite])]
    for _, op, shape in sorted(cases, key=lambda case: case[0]):
        if time.monotonic() - start > limit:
            found["skipped"].append(f"{op.name} {shape.label}")
            continue
        print(f"{time.monotonic() - start:6.0f}s  {op.name} {shape.label}", flush=True)
        _add_case(found, op, shape, device, suite)
        results.save(found, out / "results.json")
    found["cases"].sort(key=lambda case: list(registry()).index(case["op"]))
    results.save(found, out / "results.json")
    for name in dict.fromkeys(case["op"] for case in found["cases"]):
        print(f"\n{name}\n{tables.text(tables.op_table(found, name))}")
    for kind, sentence in (("skipped", "out of time for"), ("errors", "cannot be measured:")):
        for line in found[kind]:
            print(sentence, line)
    return found


def is_right(found: results.Results) -> bool:
    """Whether every case of ours was, and none ended in an error."""
    ours = [case["variants"].get(measure.OURS, {"status": "ok"}) for case in found["cases"]]
    return not found["errors"] and all(cell["status"] == "ok" for cell in ours)


def _add_case(found: results.Results, op: Op, shape: Shape, device: torch.device, suite: str) -> None:
    try:
        case: dict[str, Any] = measure.measure(op, shape, device, measure.EFFORTS[suite])
    except Unavailable as unavailable:
        print(f"  {shape.label}: {unavailable}")
    except Exception as error:  # one case that cannot be set up or does not fit must not cost the others
        found["errors"].append(f"{op.name} {shape.label}: {type(error).__name__}: {error}"[:300])
    else:
        found["cases"].append(case)
