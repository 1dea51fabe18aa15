"""Character ranges and edits, projected on tokens."""

from __future__ import annotations

from collections.abc import Sequence

from fgrl.data.segment import word_ranges
from fgrl.data.tokens import TokenizedText


def overlapping(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token shares a character with one of `spans`.

    Args:
        offsets: Half-open character range of each token.
        spans: Half-open character ranges, in any order; they may overlap.

    Returns:
        One flag a token. A token without characters of its own (white space only) is never flagged.
    """
    return (
        [any(start < stop and first < end for first, stop in spans) for start, end in offsets]
        if spans
        else [False] * len(offsets)
    )


def word_of_tokens(text: str, tokens: TokenizedText) -> list[int]:
    """The word each token belongs to, numbered from 0.

    Tokens that touch the same word share its number; so do the words that one token spans. A token that touches no
    word (white space only) gets a number of its own.
    """
    words = word_ranges(text)
    numbers: list[int] = []
    count, current, last_word, at = 0, 0, -1, 0
    for start, end in tokens.offsets:
        first = max(at - 1, 0)  # byte tokens of one character repeat its range
        while first < len(words) and words[first][1] <= start:
            first += 1
        last = first
        while last < len(words) and words[last][0] < end:
            last += 1
        touches = start < end and last > first
        if not touches:
            numbers.append(count)
            count += 1
            continue
        if first > last_word:
            current, count = count, count + 1
        last_word, at = last - 1, last
        numbers.append(current)
    return numbers


def widen_to_words(
    original: tuple[str, TokenizedText],
    edited: tuple[str, TokenizedText],
    original_edits: Sequence[bool],
    edited_edits: Sequence[bool],
) -> tuple[list[bool], list[bool]]:
    """Widen token edits to whole words, on both sides.

    A word with one edited token is edited as a whole. A token that the alignment keeps stands for one token on each
    side: when the word around it is edited on one side, it is edited on the other too. So "cat" + "s" inserted marks
    "cats" in the edited text and "cat" in the original, while an inserted word marks nothing in the original. The
    result is the smallest pair of masks with these two properties that contains the token edits.

    Args:
        original: Text of the original and its tokens.
        edited: Text of the edited response and its tokens.
        original_edits: One flag a token: substituted or deleted.
        edited_edits: One flag a token: substituted or inserted.

    Returns:
        The widened flags of each side.
    """
    if not any(original_edits) and not any(edited_edits):
        return list(original_edits), list(edited_edits)
    left = word_of_tokens(*original)
    shift = max(left, default=-1) + 1
    right = [shift + number for number in word_of_tokens(*edited)]
    parent = list(range(max(right, default=shift) + 1))

    def root(word: int) -> int:
        while parent[word] != word:
            parent[word] = parent[parent[word]]
            word = parent[word]
        return word

    kept_left = (word for word, edit in zip(left, original_edits, strict=True) if not edit)
    kept_right = (word for word, edit in zip(right, edited_edits, strict=True) if not edit)
    for one, other in zip(kept_left, kept_right, strict=True):
        parent[root(one)] = root(other)
    touched = {root(word) for word, edit in zip(left, original_edits, strict=True) if edit}
    touched |= {root(word) for word, edit in zip(right, edited_edits, strict=True) if edit}
    return [root(word) in touched for word in left], [root(word) in touched for word in right]
