"""Edit alignment: microseconds a pair, and how many times longer the libraries people use today take.

The libraries get lists of ints, one pair at a time, which is the only form they take. fgrl gets the batch packed in
int32 tensors, and as the same lists. All results are checked before anything is timed. Times are processor time of the
calling thread, except for the comparison of two threads with one, which is wall time.
"""

from __future__ import annotations

import difflib
import json
import random
import re
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein as rapidfuzz

import fgrl
from benchmarks.timing import environment, interleaved

try:
    import Levenshtein as python_levenshtein
except ImportError:
    python_levenshtein = None

Pairs = list[tuple[list[int], list[int]]]

VOCABULARY = 49152
LENGTHS = (64, 512, 2048, 8192)
RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 1.0)
HUMAN_EDITS = Path(__file__).parents[1].parent / "shared" / "data" / "qa_feedback_edits.jsonl"
COLUMNS = ("rapidfuzz", "hinted", "Levenshtein", "difflib")


def random_pairs(length: int, rate: float, count: int) -> Pairs:
    """Pairs in which a share `rate` of the tokens is deleted, substituted or followed by an insertion, evenly."""
    rng = random.Random(length + round(1000 * rate))
    pairs = []
    for _ in range(count):
        original = [rng.randrange(VOCABULARY) for _ in range(length)]
        edited: list[int] = []
        for token in original:
            kind = rng.randrange(3) if rng.random() < rate else 3
            edited += {0: [], 1: [rng.randrange(VOCABULARY)], 2: [token, rng.randrange(VOCABULARY)], 3: [token]}[kind]
        pairs.append((original, edited))
    return pairs


def human_pairs() -> Pairs:
    """The human edits as word and punctuation ids, where the file is present."""
    if not HUMAN_EDITS.exists():
        return []
    vocabulary: dict[str, int] = {}

    def ids(text: str) -> list[int]:
        return [vocabulary.setdefault(word, len(vocabulary)) for word in re.findall(r"\w+|[^\w\s]", text)]

    with HUMAN_EDITS.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(ids(row["original"]), ids(row["edited"])) for row in rows]


def packed(sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.tensor(list(chain.from_iterable(sequences)), dtype=torch.int32)
    return tokens, torch.tensor([0, *map(len, sequences)]).cumsum(0)


def check(pairs: Pairs) -> list[int]:
    """Distances, after checking fgrl's result against rapidfuzz and by applying it."""
    originals, editeds = [a for a, _ in pairs], [b for _, b in pairs]
    alignment = fgrl.align_edits(packed(originals), packed(editeds))
    distances = [rapidfuzz.distance(a, b) for a, b in pairs]
    if alignment.distance.tolist() != distances:
        raise RuntimeError("fgrl and rapidfuzz disagree on a distance")
    for index, (a, b) in enumerate(pairs):
        blocks = alignment.opcodes(index)
        if list(chain.from_iterable(a[i1:i2] if tag == "equal" else b[j1:j2] for tag, i1, i2, j1, j2 in blocks)) != b:
            raise RuntimeError("fgrl's opcodes do not give the edited sequence")
    return distances


def measure(pairs: Pairs, rounds: int, slow_peers: bool) -> dict[str, float]:
    """Microseconds a pair of every variant."""
    distances = check(pairs)
    originals, editeds = [a for a, _ in pairs], [b for _, b in pairs]
    a, b = packed(originals), packed(editeds)
    variants: dict[str, Callable[[], object]] = {
        "fgrl": lambda: fgrl.align_edits(a, b, num_threads=1),
        "fgrl lists": lambda: fgrl.align_edits(originals, editeds, num_threads=1),
        "rapidfuzz": lambda: [rapidfuzz.editops(x, y) for x, y in pairs],
        "hinted": lambda: [rapidfuzz.editops(x, y, score_hint=d) for (x, y), d in zip(pairs, distances, strict=True)],
    }
    if python_levenshtein is not None:
        variants["Levenshtein"] = lambda: [python_levenshtein.editops(x, y) for x, y in pairs]
    if slow_peers:
        variants["difflib"] = lambda: [
            difflib.SequenceMatcher(None, x, y, autojunk=False).get_opcodes() for x, y in pairs[:2]
        ]
    seconds = interleaved(variants, rounds, clock=time.thread_time)
    threads = {count: partial(fgrl.align_edits, a, b, num_threads=count) for count in (1, 2)}
    wall = interleaved({f"{count} threads": run for count, run in threads.items()}, rounds)
    counts = {name: min(2, len(pairs)) if name == "difflib" else len(pairs) for name in variants}
    times = {name: 1e6 * value / counts[name] for name, value in seconds.items()}
    return times | {f"wall {name}": 1e6 * value / len(pairs) for name, value in wall.items()}


def goal(length: int, rate: float) -> float:
    """The ratio to rapidfuzz that this library promises itself."""
    if rate <= 0.02 and length >= 512:
        return {512: 20.0, 8192: 60.0}.get(length, 5.0)
    return 5.0


def report(label: str, times: dict[str, float], wanted: float) -> dict[str, Any]:
    ratios = {name: times[name] / times["fgrl"] for name in COLUMNS if name in times}
    cells = " ".join(f"{ratios[name]:9.1f}x" if name in ratios else f"{'-':>10}" for name in COLUMNS)
    met = ratios["rapidfuzz"] >= wanted
    speedup = times["wall 1 threads"] / times["wall 2 threads"]
    lists = times["rapidfuzz"] / times["fgrl lists"]
    print(
        f"{label:>16} {times['fgrl']:10.2f} {cells} {wanted:5.0f}x {'yes' if met else 'NO':>4} "
        f"{lists:8.1f}x {speedup:8.2f}x",
        flush=True,
    )
    return {"cell": label, "microseconds": times, "ratios": ratios, "goal": wanted, "met": met}


def run(*, quick: bool = False) -> dict[str, Any]:
    """Prints the table and returns its data."""
    torch.set_num_threads(2)
    where = environment("rapidfuzz", "levenshtein")
    print(f"edit alignment, {where}")
    print(f"{'tokens, edits':>16} {'fgrl us':>10} " + " ".join(f"{name:>10}" for name in COLUMNS), end="")
    print(f" {'goal':>6} {'met':>4} {'lists':>9} {'2 threads':>9}")
    cells = []
    rounds = 5 if quick else 15
    for length in LENGTHS[:2] if quick else LENGTHS:
        for rate in RATES[::3] if quick else RATES:
            pairs = random_pairs(length, rate, max(8, 131072 // length))
            times = measure(pairs, rounds, slow_peers=length <= 512)
            cells.append(report(f"{length}, {100 * rate:g} %", times, goal(length, rate)))
    if human := human_pairs():
        cells.append(report("human edits", measure(human, rounds, slow_peers=True), 5.0))
    return {"environment": where, "cells": cells}
