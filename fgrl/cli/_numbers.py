"""Types of numeric flags: each says the range it takes, and no number outside it goes any further."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

_LARGEST = 2**31 - 1


def integer(minimum: int, maximum: int = _LARGEST) -> Callable[[str], int]:
    """An argparse type: a whole number in `[minimum, maximum]`."""

    def parse(text: str) -> int:
        wanted = f"a whole number of at least {minimum}" + (f" and at most {maximum}" if maximum != _LARGEST else "")
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {text!r}; it must be {wanted}") from None
        if value > _LARGEST:
            wanted = f"a whole number of at most {min(maximum, _LARGEST)}"
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"is {text}; it must be {wanted}")
        return value

    return parse


def number(
    minimum: float = -math.inf, maximum: float = math.inf, *, above: float = -math.inf
) -> Callable[[str], float]:
    """An argparse type: a finite number in `[minimum, maximum]`, and greater than `above`."""
    limits = [f"at least {minimum:g}"] if minimum > -math.inf else [f"above {above:g}"] if above > -math.inf else []
    limits += [f"at most {maximum:g}"] if maximum < math.inf else []
    wanted = "a finite number" + (" " + " and ".join(limits) if limits else "")

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {text!r}; it must be {wanted}") from None
        if not (math.isfinite(value) and minimum <= value <= maximum and value > above):
            raise argparse.ArgumentTypeError(f"is {text}; it must be {wanted}")
        return value

    return parse
