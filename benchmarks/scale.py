"""Scaling: time and memory of an op against one size at a time, with the floor of each point."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

import fgrl
from benchmarks import machine, measure, results, tables
from benchmarks.registry import Inputs, Op, Run, Shape, Unavailable, registry

SLOWEST = 2.0  # seconds of one run past which a variant gets no further point
EFFORT = measure.Effort(seconds=0.2, rounds=3)
TOKEN_OPS = ("gae", "token_advantages", "group_advantages", "whiten", "ppo_loss", "value_loss", "edit_preference_loss")


class Axis(NamedTuple):
    """One size that changes, and the shape at each of its values, from the cheapest on."""

    name: str
    shapes: dict[int, Shape]


def axes(op: str, suite: str) -> list[Axis]:
    """What an op is scaled along; a curve ends early where a point takes too long."""
    is_gpu, is_tiny = suite == "gpu", suite in ("tiny", "quick")
    dtype = torch.bfloat16 if is_gpu else torch.float32

    def axis(name: str, exponents: Iterable[int], shape: Callable[[int], Shape]) -> Axis:
        found = list(exponents)
        return Axis(name, {1 << n: shape(1 << n) for n in (found[:2] if is_tiny else found)})

    if op == "align_edits":
        pairs = axis("length", range(6, 15), lambda n: Shape(max(1, 32768 // n), n, dtype=torch.int32, rate=0.05))
        return [] if is_gpu else [pairs]
    if op in TOKEN_OPS:
        tokens = axis("tokens", range(10, 25, 2), lambda n: Shape(n // 1024, 1024))
        total = 1 << (22 if is_gpu else 20)
        sequences = axis("sequences", range(14, -1, -2), lambda n: Shape(n, total // n, packed=True))
        return [tokens, sequences] if op in ("gae", "token_advantages") else [tokens]
    if op == "token_reward_head":
        return [
            axis("tokens", range(10, 21, 2), lambda n: Shape(n // 256, 256, 576, dtype=dtype)),
            axis("hidden", range(8, 14), lambda n: Shape(16, 256, n, dtype=dtype)),
        ]
    length, vocab = (1024, 49152) if is_gpu else (128, 8192)
    return [
        axis("tokens", range(10, 18), lambda n: Shape(n // length, length, 576, vocab, dtype)),
        axis("vocabulary", range(10, 19), lambda n: Shape(4, length, 576, n, dtype)),
        axis("hidden", range(7, 14), lambda n: Shape(4, length, n, vocab, dtype)),
    ]


def run(suite: str, ops: Sequence[str], device: torch.device, limit: float) -> list[dict[str, Any]]:
    """Every curve: an op, an axis, the floor, and for ours and PyTorch their points.

    Correctness is not checked here: `run` does that. Nothing is begun after `limit` seconds.
    """
    start, curves = time.monotonic(), []
    ceilings = machine.ceilings(device, {torch.float32, torch.bfloat16})
    for op in (registry()[name] for name in ops or registry()):
        for axis in axes(op.name, suite):
            if time.monotonic() - start < limit:
                curves.append(_curve(op, axis, device, ceilings))
                print(text(curves[-1]), flush=True)
        if suite == "cpu" and time.monotonic() - start < limit:
            curves.append(_thread_curve(op, op.shapes["cpu"][-1], ceilings))
            print(text(curves[-1]), flush=True)
    return curves


def text(curve: dict[str, Any]) -> str:
    """The curve as a table: time, then memory, of each variant."""
    rows = []
    for point in curve["floor"]:
        row = [str(point["size"]), tables.time(point["seconds"])]
        for points in curve["points"].values():
            found = next((p for p in points if p["size"] == point["size"]), None)
            row += [tables.time(found["seconds"]["p50"]), tables.memory_cell(found)] if found else ["-", "-"]
        rows.append(row)
    header = [curve["axis"], "floor", *(column for name in curve["points"] for column in (name, "memory"))]
    return f"\n{curve['op']} ({curve['shape']})\n" + tables.text(tables.Table(header, rows, []))


def _curve(op: Op, axis: Axis, device: torch.device, ceilings: dict[str, Any]) -> dict[str, Any]:
    alive = [measure.OURS, measure.EAGER]
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in alive}
    floor = []
    for size, shape in axis.shapes.items():
        try:
            inputs = op.make(shape, device)
        except (Unavailable, torch.OutOfMemoryError):
            break
        found = _points(op, alive, inputs, device, size)
        for name, point in found.items():
            points[name].append(point)
        floor.append(_floor(op, inputs, shape, ceilings, size))
        alive = [name for name, point in found.items() if point["seconds"]["p50"] < SLOWEST]
        if not alive:
            break
    label = next(iter(axis.shapes.values())).label
    return {"op": op.name, "axis": axis.name, "shape": f"from {label}", "floor": floor, "points": points}


def _thread_curve(op: Op, shape: Shape, ceilings: dict[str, Any]) -> dict[str, Any]:
    """Ours on one thread and more, up to the processors this process may use."""
    before, device = torch.get_num_threads(), torch.device("cpu")
    inputs, floor, points = op.make(shape, device), [], []
    try:
        for count in range(1, len(os.sched_getaffinity(0)) + 1):
            torch.set_num_threads(count)
            points += _points(op, [measure.OURS], inputs, device, count).values()
            floor.append(_floor(op, inputs, shape, ceilings, count))
    finally:
        torch.set_num_threads(before)
    return {"op": op.name, "axis": "threads", "shape": shape.label, "floor": floor, "points": {measure.OURS: points}}


def _points(op: Op, names: Sequence[str], inputs: Inputs, device: torch.device, size: int) -> dict[str, dict[str, Any]]:
    runs: dict[str, Run] = {
        measure.OURS: partial(op.call, fgrl.ops),
        measure.EAGER: op.eager or partial(op.call, fgrl.reference),
    }
    cells = measure.timed(op, {name: runs[name] for name in names}, inputs, device, EFFORT)
    return {
        name: {"size": size, "seconds": cell["seconds"][op.parts[-1]], "peak_bytes": cell["peak_bytes"]}
        for name, cell in cells.items()
        if "seconds" in cell
    }


def _floor(op: Op, inputs: Inputs, shape: Shape, ceilings: dict[str, Any], size: int) -> dict[str, Any]:
    moved, flops = op.floor(inputs).of(op.parts[-1])
    case = {"floor": {"all": {"bytes": moved, "flops": flops}}, "dtype": str(shape.dtype).removeprefix("torch.")}
    return {"size": size, "seconds": results.floor_seconds({"ceilings": ceilings}, case, "all")}
