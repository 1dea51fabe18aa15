"""A progress bar on stderr with no dependency: one line, redrawn a few times a second, only on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")

_REDRAW_SECONDS = 0.2
_WIDTH = 30


def progress(
    iterable: Iterable[Item], *, total: int | None = None, desc: str = "", unit: str = "it", quiet: bool = False
) -> Iterator[Item]:
    """Yield the items of `iterable` and draw how far it is.

    Args:
        iterable: what to go through.
        total: its length, where known; else `len(iterable)` when it has one, else only the count is shown.
        desc: words in front of the bar.
        unit: what is counted.
        quiet: draw nothing. Nothing is drawn either where stderr is not a terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield from iterable
        return
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    start = last = time.monotonic()
    count = 0
    try:
        for item in iterable:
            yield item
            count += 1
            now = time.monotonic()
            if now - last >= _REDRAW_SECONDS:
                last = now
                sys.stderr.write("\r" + _line(count, total, desc, unit, now - start))
    finally:
        sys.stderr.write("\r" + _line(count, total, desc, unit, time.monotonic() - start) + "\n")


def _line(count: int, total: int | None, desc: str, unit: str, seconds: float) -> str:
    rate = f"{count / max(seconds, 1e-9):,.1f} {unit}/s"
    if not total:
        return f"{desc} {count:,} {unit}, {rate}"
    filled = min(_WIDTH, _WIDTH * count // total)
    return f"{desc} |{'#' * filled}{'.' * (_WIDTH - filled)}| {count:,}/{total:,} {unit}, {rate}"
