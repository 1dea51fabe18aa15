"""Figures of a result: how far each variant is above the floor, and the scaling curves with the floor drawn in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks import tables, timing
from benchmarks.results import Results, floor_seconds
from fgrl.data.output import open_output

COLOURS = {"fgrl": "#1764ab", "PyTorch": "#d1740f", "torch.compile": "#6b7280"}
_OTHERS = "#9aa5b1"


def draw(results: Results, out: Path) -> list[Path]:
    """Write the figures that the result has data for, as SVG; the same data give the same bytes."""
    kind = "gpu" if results.get("suite") == "gpu" else "cpu"
    style = {"svg.hashsalt": "fgrl", "svg.fonttype": "none", "font.size": 8, "axes.grid": True, "grid.alpha": 0.3}
    paths = []
    with plt.rc_context(style):
        for name, figure in _figures(results):
            paths.append(out / f"benchmarks-{name}-{kind}.svg")
            with open_output(paths[-1]) as file:
                figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)
    return paths


def _figures(results: Results) -> Iterator[tuple[str, Any]]:
    if results.get("cases"):
        yield "floor", _floor_figure(results)
    for what, label in (("seconds", "seconds"), ("peak_bytes", "peak bytes")):
        if results.get("scale"):
            yield f"scale-{'time' if what == 'seconds' else 'memory'}", _scale_figure(results["scale"], what, label)


def _floor_figure(results: Results) -> Any:
    """One line of dots a case: times as multiples of the floor."""
    cases = results["cases"]
    figure, axes = plt.subplots(figsize=(7, 0.5 + 0.28 * len(cases)))
    seen = set()
    for row, case in enumerate(cases):
        part = list(case["floor"])[-1]
        floor = floor_seconds(results, case, part)
        for name, cell in reversed(case["variants"].items()):
            seconds = tables.median(cell, part)
            if seconds is not None:
                legend = name if name in COLOURS else "peers"
                label = None if legend in seen else legend
                seen.add(legend)
                axes.plot(seconds / floor, row, "o", color=COLOURS.get(name, _OTHERS), markersize=5, label=label)
    axes.set_yticks(range(len(cases)), [f"{case['op']}  {case['shape']}" for case in cases])
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("time / floor")
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    axes.set_title(timing.processor(results["environment"]))
    return figure


def _scale_figure(curves: list[dict[str, Any]], what: str, label: str) -> Any:
    """A small plot a curve, both axes logarithmic."""
    columns = 3
    rows = -(-len(curves) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(10, 2.6 * rows), squeeze=False, layout="constrained")
    for axes, curve in zip(grid.flat, curves, strict=False):
        for name, points in curve["points"].items():
            values = [p["seconds"]["p50"] if what == "seconds" else p["peak_bytes"] or None for p in points]
            sizes = [p["size"] for p in points]
            axes.plot(sizes, values, "o-", color=COLOURS[name], markersize=3, label=name)
        if what == "seconds":
            sizes, floor = zip(*((p["size"], p["seconds"]) for p in curve["floor"]), strict=True)
            axes.plot(sizes, floor, "--", color="black", linewidth=1, label="floor")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(curve["op"])
        axes.set_xlabel(curve["axis"])
        axes.set_ylabel(label)
    for axes in list(grid.flat)[len(curves) :]:
        axes.remove()
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
