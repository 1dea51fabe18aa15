"""Minimising finds the hunks that matter, and no judge is asked more often than it may be."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from fgrl.edits import minimise

WORDS = [f"w{n}" for n in range(16)]


def run(needed: set[int], changed: set[int], limit: int = 10**6) -> tuple[str, int]:
    """The minimised edit that upper-cases `changed` words, of which `needed` matter; and the number of judgements."""
    original = " ".join(" ".join((word, "x")) for word in WORDS)
    edited = " ".join(" ".join((word.upper() if n in changed else word, "x")) for n, word in enumerate(WORDS))
    asked = 0

    async def as_good(text: str) -> bool:
        nonlocal asked
        asked += 1
        return all(WORDS[n].upper() in text.split() for n in needed)

    return asyncio.run(minimise(original, edited, as_good, max_judgements=limit)), asked


@given(st.sets(st.integers(0, 15), min_size=1), st.sets(st.integers(0, 15)))
def test_exactly_what_matters_is_left(needed: set[int], more: set[int]) -> None:
    text, _ = run(needed, needed | more)
    assert {WORDS.index(word.lower()) for word in text.split() if word != "x" and word.isupper()} == needed


@given(st.sets(st.integers(0, 15), min_size=1), st.integers(0, 6))
def test_the_judge_is_asked_no_more_than_it_may_be(needed: set[int], limit: int) -> None:
    text, asked = run(needed, set(range(16)), limit)
    assert asked <= limit
    assert all(WORDS[n].upper() in text.split() for n in needed)
