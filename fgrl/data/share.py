"""How much of a response an edit changes, in words."""

from __future__ import annotations

from collections.abc import Sequence

from fgrl.data.tokens import PlainTokenizer
from fgrl.ops import align_edits


def edit_share(distance: int, original: int, edited: int) -> float:
    """Edits per token of the longer side: 0 for no change, 1 where nothing was kept.

    Args:
        distance: Levenshtein distance in tokens.
        original: Tokens of the original response.
        edited: Tokens of the edited one.
    """
    return distance / max(original, edited, 1)


def edit_shares(originals: Sequence[str], editeds: Sequence[str]) -> list[float]:
    """The share of the words and punctuation marks of each pair that its edit changes.

    Example:
        >>> edit_shares(["It is gren.", "Yes"], ["It is blue.", "Yes"])
        [0.25, 0.0]
    """
    if not originals:
        return []
    tokens = PlainTokenizer()([*originals, *editeds])
    ids = [text.ids for text in tokens]
    left, right = ids[: len(originals)], ids[len(originals) :]
    distances = align_edits(left, right).distance.tolist()
    return [
        edit_share(distance, len(one), len(other)) for distance, one, other in zip(distances, left, right, strict=True)
    ]
