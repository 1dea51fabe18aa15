"""Results on disk, and whether one set of them is slower than another.

A result file holds `environment`, `ceilings` (the machine's rates), `suite` and `cases`; each case an op on a shape,
with its floor and, for each variant, a status ("ok", "absent", "wrong", "failed"), a reason, and when it is ok the
seconds of each part (p20, p50, p80) and the peak bytes. `scale`, `end_to_end` and `align_edits` hold those tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fgrl.data.output import write_text

Results = dict[str, Any]

COMMITTED = Path(__file__).parent / "results"
TOLERANCE = 0.05


def save(results: Results, path: Path) -> None:
    """Write the file whole or not at all, so that a run which is stopped leaves what it had."""
    write_text(path, json.dumps(results, indent=1) + "\n")


def load(path: Path) -> Results:
    """The results in a file, or in `results.json` of a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    file = path / "results.json" if path.is_dir() else path
    results: Results = json.loads(file.read_text(encoding="utf-8"))
    return results


def update(path: Path, **parts: Any) -> None:
    """Set top-level entries of a result file, which may not exist yet."""
    save((load(path) if path.exists() else {}) | parts, path)


def newest(key: str, kind: str = "") -> tuple[str, Results] | None:
    """Name and content of the committed result with the latest date that has an entry `key`, or None.

    `kind` is "cpu" or "gpu", or "" for either.
    """
    for path in sorted(COMMITTED.glob("*.json"), key=lambda path: (path.stem[-10:], path.stem), reverse=True):
        results = load(path)
        if key in results and (not kind or (results.get("suite") == "gpu") == (kind == "gpu")):
            return path.name, results
    return None


def file_name(results: Results) -> str:
    """`<device>-<date>.json`."""
    environment = results["environment"]
    device = re.sub(r"[^a-z0-9]+", "-", environment["device"].lower()).strip("-")
    return f"{device}-{environment['date']}.json"


def floor_seconds(results: Results, case: dict[str, Any], part: str) -> float:
    """The time that the floor takes at the machine's own rates."""
    ceilings, floor = results["ceilings"], case["floor"][part]
    seconds = float(floor["bytes"]) / ceilings["bytes_per_second"]
    if floor["flops"]:
        seconds = max(seconds, floor["flops"] / ceilings["flops_per_second"][case["dtype"]])
    return seconds


class Change(NamedTuple):
    """One row of `compare`: the ratio of the medians, new to old, and what it means."""

    row: str
    ratio: float | None
    noise: float
    verdict: str


def compare(old: Results, new: Results) -> list[Change]:
    """Every row of ours that the old results have.

    Slower means that the new p20 is past the old p80 and the median past the tolerance; what was right and is no
    longer, or is gone, is a regression too. A whole op or shape that the new run left out is not.
    """
    before, after = dict(_rows(old)), dict(_rows(new))
    changes = []
    for row, was in before.items():
        if row not in after or was["status"] != "ok":
            continue
        now = after[row]
        if now["status"] != "ok":
            changes.append(Change(row, None, 0.0, f"regression: {now['status']}, {now['reason']}"))
            continue
        ratio, noise = now["p50"] / was["p50"], max(s["p80"] / s["p20"] - 1 for s in (was, now))
        verdict = ""
        if now["p20"] > was["p80"] and ratio > 1 + TOLERANCE:
            verdict = "regression: slower"
        elif now["p80"] < was["p20"] and ratio < 1 - TOLERANCE:
            verdict = "faster"
        changes.append(Change(row, ratio, noise, verdict))
    return changes


def _rows(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    for case in results["cases"]:
        cell = case["variants"]["fgrl"]
        for part in case["floor"]:
            times = cell.get("seconds", {}).get(part, {})
            yield f"{case['op']} {case['shape']} {part}", {"status": cell["status"], "reason": cell["reason"], **times}
