"""The demo's annotator: a spell checker that edits a text as little as it can.

It stands in for the person who would edit a real model's responses. A word outside the lexicon is replaced,
everything else is left exactly as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from fgrl.demo.corpus import WORD

_ALPHABET = "abcdefghijklmnopqrstuvwxyz'"


class SpellChecker:
    """Minimal edits that leave only words of a lexicon.

    A wrong word becomes codespell's correction where codespell lists the word and the correction is in the lexicon,
    otherwise the nearest lexicon word by edit distance (the more frequent one among equals, then the first in the
    alphabet).

    Args:
        lexicon: word -> how often it occurs, lower case.
        misspellings: misspelling -> corrections, best first.

    Example:
        >>> check = SpellChecker({"the": 3, "object": 1, "is": 2}, {"teh": ("the",)})
        >>> check.correct("teh objct is the object.")
        'the object is the object.'
        >>> check.count("teh objct is the object.")
        (2, 5)
    """

    def __init__(self, lexicon: Mapping[str, int], misspellings: Mapping[str, Sequence[str]]) -> None:
        if not lexicon:
            raise ValueError("lexicon is empty; it must hold at least one word")
        self._lexicon = frozenset(lexicon)
        self._misspellings = misspellings
        self._words = sorted(lexicon, key=lambda word: (-lexicon[word], word))
        self._letters = np.stack([_letter_counts(word) for word in self._words])  # [V, 27]
        self._beginnings = frozenset(word[:i] for word in lexicon for i in range(1, len(word) + 1))
        self._corrections: dict[str, str] = {}

    def correct(self, text: str, *, complete: bool = True) -> str:
        """`text` with its wrong words replaced.

        Args:
            text: lower-case text.
            complete: False for a text that was stopped by a length limit: its last word, where nothing follows it,
                also counts as right when a lexicon word begins with it.
        """
        return WORD.sub(lambda m: self._fix(m, self._may_be_cut(m, text, complete)), text)

    def wrong_spans(self, text: str, *, complete: bool = True) -> list[tuple[int, int]]:
        """Character spans of the wrong words of `text`; `complete` as in `correct`."""
        return [
            match.span()
            for match in WORD.finditer(text)
            if not self._is_right(match.group(), self._may_be_cut(match, text, complete))
        ]

    def count(self, text: str, *, complete: bool = True) -> tuple[int, int]:
        """`(wrong words, words)` of `text`; `complete` as in `correct`."""
        return len(self.wrong_spans(text, complete=complete)), len(WORD.findall(text))

    def _fix(self, match: re.Match[str], cut: bool) -> str:
        word = match.group()
        return word if self._is_right(word, cut) else self._correction(word)

    def _is_right(self, word: str, cut: bool) -> bool:
        return word in self._lexicon or (cut and word in self._beginnings)

    @staticmethod
    def _may_be_cut(match: re.Match[str], text: str, complete: bool) -> bool:
        return not complete and match.end() == len(text)

    def _correction(self, word: str) -> str:
        found = self._corrections.get(word)
        if found is None:
            listed = (known for known in self._misspellings.get(word, ()) if known in self._lexicon)
            found = next(listed, None) or self._nearest(word)
            self._corrections[word] = found
        return found

    def _nearest(self, word: str) -> str:
        """The lexicon word at the least edit distance, visited in the order of a lower bound on that distance.

        Each edit adds at most one missing letter and removes at most one surplus letter, so that the larger of the two
        counts bounds the distance from below.
        """
        difference = self._letters - _letter_counts(word)
        bound = np.maximum(np.maximum(difference, 0).sum(axis=1), np.maximum(-difference, 0).sum(axis=1))
        best, best_distance, best_rank = "", len(word) + max(map(len, self._words)), len(self._words)
        for rank in np.argsort(bound, kind="stable").tolist():
            if bound[rank] > best_distance:
                break
            distance = edit_distance(word, self._words[rank], best_distance)
            if (distance, rank) < (best_distance, best_rank):
                best, best_distance, best_rank = self._words[rank], distance, rank
        return best


def edit_distance(a: str, b: str, limit: int) -> int:
    """Levenshtein distance of two words; `limit + 1` for every distance above `limit`."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
        if min(row) > limit:
            return limit + 1
    return min(row[-1], limit + 1)


def _letter_counts(word: str) -> np.ndarray:
    return np.array([word.count(letter) for letter in _ALPHABET], dtype=np.int16)
