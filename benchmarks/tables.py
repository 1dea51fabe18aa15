"""Tables of results, for a terminal and for Markdown, made of the same cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.measure import COMPILED, EAGER, OURS
from benchmarks.results import Results, floor_seconds

ABSENT = "-"


class Table(NamedTuple):
    """A header, rows of as many cells, and notes to go below."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def op_table(results: Results, op: str) -> Table:
    """All cases of one op: our time, the floor's and how far above it we are; the others relative to ours.

    A row of peak memory follows the times of each shape. A cell that has no number says why in a note.
    """
    cases = [case for case in results["cases"] if case["op"] == op]
    names = list(dict.fromkeys(name for case in cases for name in case["variants"]))
    others = [name for name in names if name != OURS]
    rows, notes = [], []
    for case in cases:
        ours = case["variants"].get(OURS, {})
        for part in case["floor"]:
            floor = floor_seconds(results, case, part)
            mine = median(ours, part)
            above = ABSENT if mine is None else f"{mine / floor:.1f}x"
            cells = [time_cell(ours, part), time(floor), above, *(ratio_cell(case, name, part) for name in others)]
            rows.append([case["shape"], part, *cells])
        peaks = [memory_cell(case["variants"].get(name, {})) for name in others]
        rows.append([case["shape"], "memory", memory_cell(ours), "", "", *peaks])
        for name, cell in case["variants"].items():
            if cell["reason"]:
                notes.append(f"{name}, {case['shape']}: {cell['status']}, {cell['reason']}")
    return Table(["shape", "pass", OURS, "floor", "above it", *others], rows, _merged(notes))


def summary_table(results: Results) -> Table:
    """One line a case: forward and backward together, and the peers in one column."""
    rows = []
    for case in results["cases"]:
        part = list(case["floor"])[-1]
        ours = case["variants"][OURS]
        mine = median(ours, part)
        above = ABSENT if mine is None else f"{mine / floor_seconds(results, case, part):.1f}x"
        peers = [name for name in case["variants"] if name not in (OURS, EAGER, COMPILED)]
        measured = [f"{name} {ratio_cell(case, name, part)}" for name in peers if median(case["variants"][name], part)]
        memory = f"{memory_cell(ours)} ({memory_cell(case['variants'][EAGER])})"
        times = [time_cell(ours, part), above, *(ratio_cell(case, name, part) for name in (EAGER, COMPILED))]
        rows.append([f"`{case['op']}`", case["shape"], *times, ", ".join(measured) or ABSENT, memory])
    return Table(["op", "shape", OURS, "above floor", EAGER, COMPILED, "peers", f"peak memory ({EAGER})"], rows, [])


def markdown(table: Table) -> str:
    """All columns but the first are numbers."""
    lines = [table.header, ["---", *["---:"] * (len(table.header) - 1)], *table.rows]
    return "\n".join(["\n".join("| " + " | ".join(line) + " |" for line in lines), *_paragraph(table.notes)])


def text(table: Table) -> str:
    """Aligned for a terminal."""
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*aligned, *(f"  {note}" for note in table.notes)])


def time(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1 or unit == "µs":
            return f"{digits(seconds * scale)} {unit}"
    raise AssertionError


def size(count: float) -> str:
    """Bytes, two or three digits and a unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{digits(count / scale)} {unit}"
    return f"{count / 1e3:.0f} kB"


def median(cell: dict[str, Any], part: str) -> float | None:
    """Seconds of a variant that was right and was timed."""
    return cell["seconds"][part]["p50"] if cell.get("status") == "ok" and "seconds" in cell else None


def time_cell(cell: dict[str, Any], part: str) -> str:
    """Time, or why there is none."""
    seconds = median(cell, part)
    return time(seconds) if seconds is not None else _blank(cell)


def ratio_cell(case: dict[str, Any], name: str, part: str) -> str:
    """How many times as long as ours; its time where ours has none."""
    cell = case["variants"].get(name, {})
    theirs, ours = median(cell, part), median(case["variants"].get(OURS, {}), part)
    if theirs is None:
        return _blank(cell)
    return time(theirs) if ours is None else f"{digits(theirs / ours)}x"


def memory_cell(cell: dict[str, Any]) -> str:
    """Peak memory."""
    peak = cell.get("peak_bytes")
    return ABSENT if peak is None else size(peak)


def _blank(cell: dict[str, Any]) -> str:
    status = cell.get("status", "absent")
    return ABSENT if status in ("absent", "ok") else status


def digits(value: float) -> str:
    """Three significant digits, all of those before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _merged(notes: Iterable[str]) -> list[str]:
    """Notes that differ in their shape only, once."""
    seen: dict[tuple[str, str], str] = {}
    for note in notes:
        name, _, rest = note.partition(", ")
        seen.setdefault((name, rest.partition(": ")[2]), note)
    return list(seen.values())


def _paragraph(notes: Sequence[str]) -> list[str]:
    return ["", "; ".join(notes) + "."] if notes else []
