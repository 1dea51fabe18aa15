"""The hunks of an edit: where it changed something, in tokens and in characters."""

from __future__ import annotations

import re

from fgrl.data.segment import word_ranges
from fgrl.ops import align_edits

Hunk = tuple[int, int, int, int]
_RUN = re.compile(rb"[^\0]+")  # EditOp.KEEP is 0


def hunks(original: bytes, edited: bytes) -> list[Hunk]:
    """What an alignment changed, as `(i1, i2, j1, j2)`: tokens `i1:i2` of the original became `j1:j2` of the edited.

    These are the opcodes of the alignment but the equal ones.

    Args:
        original: A label (`fgrl.EditOp`) for each token of the original, a byte each.
        edited: The same of the edited response.

    Example:
        >>> hunks(bytes([0, 1, 2, 0]), bytes([0, 1, 0, 3]))
        [(1, 3, 1, 2), (4, 4, 3, 4)]
    """
    left, right = _runs(original), _runs(edited)
    result, i, j = [], 0, 0  # tokens before the hunk that the edit changed, on each side
    for kept in sorted({*left, *right}) if left or right else ():
        removed, added = left.get(kept, 0), right.get(kept, 0)
        result.append((kept + i, kept + i + removed, kept + j, kept + j + added))
        i, j = i + removed, j + added
    return result


def _runs(labels: bytes) -> dict[int, int]:
    """Length of each run of changed tokens, by the number of kept tokens before it."""
    runs, changed = {}, 0
    for match in _RUN.finditer(labels):
        start, end = match.span()
        runs[start - changed] = end - start
        changed += end - start
    return runs


def hunks_of_texts(original: str, edited: str) -> list[Hunk]:
    """What an edit changed, in characters: hunks of words, with the white space that changed beside them.

    Replacing each `original[i1:i2]` by `edited[j1:j2]` gives the edited text exactly.

    Example:
        >>> hunks_of_texts("It is gren.", "It is  blue.")
        [(6, 10, 6, 11)]
    """
    left, right = word_ranges(original), word_ranges(edited)
    vocabulary: dict[str, int] = {}
    ids = [
        [vocabulary.setdefault(text[start:end], len(vocabulary)) for start, end in ranges]
        for text, ranges in ((original, left), (edited, right))
    ]
    alignment = align_edits(ids[:1], ids[1:], num_threads=1)
    labels = alignment.original_ops.tolist(), alignment.edited_ops.tolist()
    kept = zip(
        [span for span, label in zip(left, labels[0], strict=True) if not label],
        [span for span, label in zip(right, labels[1], strict=True) if not label],
        strict=True,
    )
    result, i, j = [], 0, 0
    for (i1, i2), (j1, j2) in [*kept, ((len(original),) * 2, (len(edited),) * 2)]:
        before, after = original[i:i1], edited[j:j1]
        if before != after:
            start = _common(before, after)
            end = _common(before[start:][::-1], after[start:][::-1])
            result.append((i + start, i1 - end, j + start, j1 - end))
        i, j = i2, j2
    return result


def _common(one: str, other: str) -> int:
    """Length of the white space that both begin with."""
    count = 0
    for char, twin in zip(one, other, strict=False):
        if char != twin or not char.isspace():
            break
        count += 1
    return count
