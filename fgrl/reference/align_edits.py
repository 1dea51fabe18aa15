r"""Edit alignment in plain Python: the specification of `fgrl.align_edits`, ties included, and its fallback.

With $D_{ij}$ the Levenshtein distance of $a_{1..i}$ and $b_{1..j}$ (unit costs), walk back from $(n, m)$ to $(0, 0)$:

1. Outside a run of edits, equal tokens are kept: $(i, j) \to (i-1, j-1)$. This is always on a cheapest path.
2. Otherwise take the first of these that is on a cheapest path; it continues the run, or opens one:
   substitute, $D_{i-1,j-1} + 1 = D_{ij}$ and $a_i \ne b_j$; delete, $D_{i-1,j} + 1 = D_{ij}$;
   insert, $D_{i,j-1} + 1 = D_{ij}$.
3. If none is (so $a_i = b_j$), keep them, which ends the run.

Rule 1 moves edits as far left as they go; rule 2 extends a run rather than open another. Both ask only about
neighbours of the path, so every exact algorithm gives the same answer.

A run that covers p tokens of `a` and q of `b` costs max(p, q): its first min(p, q) tokens on each side are
substituted, in order, and the rest deleted or inserted.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from fgrl.alignment import EditAlignment, EditOp, pack


def align_edits(original: Any, edited: Any, *, num_threads: int | None = None) -> EditAlignment:
    """Minimum-edit alignment of each pair; see `fgrl.align_edits`. `num_threads` has no effect here."""
    a, b = pack(original, "original"), pack(edited, "edited")
    pairs = zip(_split(*a), _split(*b), strict=True)
    results = [align_pair(x, y) for x, y in pairs]
    return EditAlignment(
        distance=torch.tensor([distance for distance, _, _ in results], dtype=torch.int64),
        original_ops=torch.tensor([op for _, ops, _ in results for op in ops], dtype=torch.uint8),
        edited_ops=torch.tensor([op for _, _, ops in results for op in ops], dtype=torch.uint8),
        original_cu_seqlens=a.cu_seqlens,
        edited_cu_seqlens=b.cu_seqlens,
    )


def align_pair(a: list[int], b: list[int]) -> tuple[int, list[int], list[int]]:
    """Distance of one pair, and the labels of `a` and of `b`."""
    distance, deletions, insertions = _cheapest_moves(a, b)
    a_ops, b_ops = [int(EditOp.KEEP)] * len(a), [int(EditOp.KEEP)] * len(b)
    i, j = len(a), len(b)
    run: tuple[int, int] | None = None  # where the current run ends, on both sides
    while i or j:
        equal = i > 0 and j > 0 and a[i - 1] == b[j - 1]
        if j == 0 or (i > 0 and deletions[j] >> i & 1):
            edit = EditOp.DELETE
        elif i == 0 or insertions[j] >> i & 1:
            edit = EditOp.INSERT
        else:
            edit = EditOp.KEEP if equal else EditOp.SUBSTITUTE
        if equal and (run is None or edit is EditOp.KEEP):
            _label_run(a_ops, b_ops, (i, j), run)
            i, j, run = i - 1, j - 1, None
            continue
        run = run or (i, j)
        i -= edit is not EditOp.INSERT
        j -= edit is not EditOp.DELETE
    _label_run(a_ops, b_ops, (0, 0), run)
    return distance, a_ops, b_ops


def _cheapest_moves(a: list[int], b: list[int]) -> tuple[int, list[int], list[int]]:
    """The distance, and which deletions and insertions lie on cheapest paths where a substitution does not.

    Entry j of both lists is for column j of D, with bit i for row i. A column is computed from the one before it, all
    rows at once, by Myers' bit-vector recurrence (1999) on Python's unbounded integers.
    """
    rows = (1 << len(a) + 1) - 1
    match: dict[int, int] = {}
    for i, token in enumerate(a, start=1):
        match[token] = match.get(token, 0) | 1 << i
    rises, falls = rows - 1, 0  # bit i: D[i][j] - D[i-1][j] is +1, or -1
    distance = len(a)
    deletions, insertions = [0], [0]
    for token in b:
        equal = match.get(token, 0)
        zero = ((((equal & rises) + rises) ^ rises) | equal | falls) & rows  # D[i][j] = D[i-1][j-1]
        right_rises = falls | rows & ~(zero | rises) | 1  # D[i][j] - D[i][j-1] is +1; row 0 always is
        right_falls = zero & rises
        distance += (right_rises >> len(a) & 1) - (right_falls >> len(a) & 1)
        insertions.append(falls)
        rises = (right_falls << 1 | ~(zero | right_rises << 1)) & rows & ~1
        falls = right_rises << 1 & zero & rows
        deletions.append(rises & zero)
    return distance, deletions, insertions


def _label_run(a_ops: list[int], b_ops: list[int], start: tuple[int, int], end: tuple[int, int] | None) -> None:
    """Writes the labels of the run of edits between `start` and `end`."""
    if end is None:
        return
    p, q = end[0] - start[0], end[1] - start[1]
    both = [int(EditOp.SUBSTITUTE)] * min(p, q)
    a_ops[start[0] : end[0]] = both + [int(EditOp.DELETE)] * (p - len(both))
    b_ops[start[1] : end[1]] = both + [int(EditOp.INSERT)] * (q - len(both))


def _split(tokens: torch.Tensor, cu_seqlens: torch.Tensor) -> list[list[int]]:
    """The sequences of a packed batch as lists."""
    flat, bounds = tokens.tolist(), cu_seqlens.tolist()
    return [flat[begin:end] for begin, end in pairwise(bounds)]
