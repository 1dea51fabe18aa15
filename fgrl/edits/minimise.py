"""Edits reduced to what matters: delta debugging over hunks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fgrl.data.hunks import hunks_of_texts
from fgrl.edits.checks import apply_hunks

Judge = Callable[[str], Awaitable[bool]]


async def minimise(original: str, edited: str, as_good: Judge, *, max_judgements: int = 32) -> str:
    """The edit without the hunks that do not matter to a judge.

    Delta debugging (Zeller and Hildebrandt, 2002, `ddmin`): parts of the edit are tried alone and left out, in ever
    finer parts. Where `max_judgements` suffice, no single hunk of the result can be undone.

    Args:
        original: The response before the edit.
        edited: The response after it, which is good.
        as_good: Whether a text that lies between the two is as good as `edited`.
        max_judgements: Questions to the judge at most; what was found until then is the result.
    """
    some = hunks_of_texts(original, edited)
    judged = 0
    parts = 2
    while len(some) > 1:
        size = -(-len(some) // parts)
        chunks = [some[at : at + size] for at in range(0, len(some), size)]
        rests = [[hunk for hunk in some if hunk not in chunk] for chunk in chunks] if len(chunks) > 2 else []
        smaller = None
        for candidate in [*chunks, *rests]:
            if judged == max_judgements:
                return apply_hunks(original, edited, some)
            judged += 1
            if await as_good(apply_hunks(original, edited, candidate)):
                smaller = candidate
                break
        if smaller is not None:
            parts = 2 if smaller in chunks else max(len(chunks) - 1, 2)
            some = smaller
        elif size == 1:
            break
        else:
            parts = min(2 * parts, len(some))
    return apply_hunks(original, edited, some)
