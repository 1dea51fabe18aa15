"""Measures one case: every variant of an op on the same inputs, checked first, then timed in interleaved rounds."""

from __future__ import annotations

import gc
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import fgrl
from benchmarks import accuracy, machine, memory
from benchmarks.registry import Inputs, Op, Run, Shape, Unavailable, with_leaves

OURS, EAGER, COMPILED = "fgrl", "PyTorch", "torch.compile"
_MOST_COPIES = 64


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        seconds: of rounds, a case; a variant that has taken three times as much sits out.
        rounds: fewest, except for who sits out.
        first_run_seconds: what a variant's first run, for the check, may take; many compile then.
        run_seconds: what one run may take after that.
        compiled: whether torch.compile is tried.
    """

    seconds: float
    rounds: int
    first_run_seconds: float = 60.0
    run_seconds: float = 10.0
    compiled: bool = True


EFFORTS = {
    "tiny": Effort(0.0, 2, compiled=False),
    "quick": Effort(0.5, 5),
    "cpu": Effort(2.0, 5),
    "gpu": Effort(1.0, 10, run_seconds=30.0),  # results are checked on fewer tokens there, so that some compile again
}
_FEWEST_LAPS = 2


def variants(op: Op, shape: Shape, inputs: Inputs, effort: Effort) -> dict[str, Run | Unavailable]:
    """What is measured, ours first; in place of what cannot be, the reason."""
    eager = op.eager or partial(op.call, fgrl.reference)
    found: dict[str, Run | Unavailable] = {OURS: partial(op.call, fgrl.ops), EAGER: eager}
    reason = op.not_compiled(shape) or ("" if effort.compiled else "not compiled in this suite")
    found[COMPILED] = Unavailable(reason) if reason else torch.compile(eager, dynamic=False)
    for name, build in op.peers.items():
        try:
            found[name] = build(inputs)
        except Unavailable as unavailable:
            found[name] = unavailable
    return found


def measure(op: Op, shape: Shape, device: torch.device, effort: Effort, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """One case as the results have it; `only` names the variants to measure, default all."""
    torch.compiler.reset()
    inputs = op.make(shape, device)
    runs = {name: run for name, run in variants(op, shape, inputs, effort).items() if not only or name in only}
    candidates = {name: run for name, run in runs.items() if not isinstance(run, Unavailable)}
    absent = {name: {"status": "absent", "reason": str(run)} for name, run in runs.items() if name not in candidates}
    checked = check(op, shape, device, candidates, inputs, effort)
    sound = {name: run for name, run in candidates.items() if checked[name]["status"] == "ok"}
    times = timed(op, sound, inputs, device, effort)
    cells = absent | {name: checked[name] | times.get(name, {}) for name in candidates}
    floor = op.floor(inputs)
    return {
        "op": op.name,
        "shape": shape.label,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "backend": fgrl.backend.resolve(op.name, device),
        "floor": {part: dict(zip(("bytes", "flops"), floor.of(part), strict=True)) for part in op.parts},
        "variants": {name: cells[name] for name in runs},
    }


def check(
    op: Op, shape: Shape, device: torch.device, runs: dict[str, Run], inputs: Inputs, effort: Effort
) -> dict[str, dict[str, Any]]:
    """Status, reason and error of each variant, compared on at most `op.checked_tokens` tokens."""
    smaller = shape.at_most(op.checked_tokens)
    if smaller != shape:
        inputs = op.make(smaller, device)
    answer = accuracy.exact(op, inputs)
    pytorch = accuracy.results(op, op.eager or partial(op.call, fgrl.reference), inputs)
    cells: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        try:
            with limited(effort.first_run_seconds):
                theirs = accuracy.results(op, run, inputs)
        except Exception as error:  # whatever a variant raises is its result
            cells[name] = {"status": "failed", "reason": _first_line(error)}
            continue
        if name == OURS:
            verdict = accuracy.judge_ours(theirs, pytorch, answer)
        else:
            verdict = accuracy.judge_peer(theirs, answer, inputs, shape.dtype)
        cells[name] = {
            "status": "wrong" if verdict.complaint else "ok",
            "reason": verdict.complaint,
            "error": verdict.error,
        }
    return cells


def timed(
    op: Op, runs: dict[str, Run], inputs: Inputs, device: torch.device, effort: Effort
) -> dict[str, dict[str, Any]]:
    """Seconds (p20, p50, p80) of each part and peak bytes of each variant."""
    stopwatch = Stopwatch(op, inputs, device)
    cells: dict[str, dict[str, Any]] = {}
    for name, run in list(runs.items()):  # fills caches other than the processor's
        try:
            with limited(effort.run_seconds):
                stopwatch(run)
        except Exception as error:
            cells[name] = {"status": "failed", "reason": _first_line(error)}
            del runs[name]
    times: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    gc.collect()
    start, rounds = time.perf_counter(), 0
    while runs and (rounds < effort.rounds or time.perf_counter() - start < effort.seconds):
        order = list(runs)
        for name in order[rounds % len(order) :] + order[: rounds % len(order)]:  # nobody always follows the same one
            spent = sum(lap[op.parts[-1]] for lap in times[name])
            if rounds < _FEWEST_LAPS or spent <= 3 * effort.seconds:
                times[name].append(stopwatch(runs[name]))
        rounds += 1
    for name, run in runs.items():
        seconds = {part: percentiles([lap[part] for lap in times[name]]) for part in op.parts}
        cells[name] = {
            "seconds": seconds,
            "laps": len(times[name]),
            "peak_bytes": memory.peak(stopwatch.untimed(run), device),
        }
    return cells


class Stopwatch:
    """Times one run of a variant on inputs that are in no cache, because each call takes the next of many copies.

    On a GPU the time is that between events, and a memset past the L2 cache precedes, which also gives the host a lead:
    what is measured is the GPU's work, unless launching it takes longer.
    """

    def __init__(self, op: Op, inputs: Inputs, device: torch.device) -> None:
        self._op, self._device = op, device
        size = sum(value.numel() * value.element_size() for value in inputs.values() if isinstance(value, Tensor))
        enough = 2 * machine.cache_bytes(device)
        copies = min(_MOST_COPIES, 1 + math.ceil(enough / max(1, size)))
        self._copies = [with_leaves(inputs, op.gradients) for _ in range(copies)]
        self._turn = 0
        self._scratch = torch.empty(enough, dtype=torch.uint8, device=device) if device.type == "cuda" else None

    def __call__(self, run: Run) -> dict[str, float]:
        inputs = self._next()
        if self._scratch is not None:
            return self._on_gpu(run, inputs, self._scratch)
        start = time.perf_counter()
        outputs = run(inputs)
        middle = time.perf_counter()
        if not self._op.gradients:
            return {"forward": middle - start}
        _backward(outputs, inputs)
        end = time.perf_counter()
        return {"forward": middle - start, "backward": end - middle, "both": end - start}

    def untimed(self, run: Run) -> Callable[[], object]:
        """Forward and backward on the next inputs, returning everything they made.

        Gradients of an earlier call are gone before this one begins, or their memory would count as there to be used.
        """
        inputs = self._next()

        def both() -> object:
            outputs = run(inputs)
            if self._op.gradients:
                _backward(outputs, inputs)
            return outputs

        return both

    def _on_gpu(self, run: Run, inputs: Inputs, scratch: Tensor) -> dict[str, float]:
        start, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        scratch.zero_()
        start.record()
        outputs = run(inputs)
        middle.record()
        if self._op.gradients:
            _backward(outputs, inputs)
        end.record()
        torch.cuda.synchronize(self._device)
        laps = {"forward": (start, middle), "backward": (middle, end), "both": (start, end)}
        return {part: 1e-3 * laps[part][0].elapsed_time(laps[part][1]) for part in self._op.parts}

    def _next(self) -> Inputs:
        self._turn = (self._turn + 1) % len(self._copies)
        inputs = self._copies[self._turn]
        for name in self._op.gradients:
            inputs[name].grad = None
        return inputs


def _backward(outputs: tuple[Tensor | None, ...], inputs: Inputs) -> None:
    assert outputs[0] is not None
    outputs[0].backward(inputs.get("output_grad"))


def percentiles(times: list[float]) -> dict[str, float]:
    """The 20th, 50th and 80th."""
    fifths = quantiles(times, n=10, method="inclusive") if len(times) > 1 else times * 9
    return {"p20": fifths[1], "p50": fifths[4], "p80": fifths[7]}


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` inside when it takes longer. Without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"one run takes longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]
