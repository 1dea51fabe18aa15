"""Counts of edits that add up: a batch of rows makes a `Summary`, and summaries merge into that of the file."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SHARE_BINS = 20
KEPT_ROWS = 10
_MAX_GROUPS = 64
OTHERS = "(others)"


@dataclass
class Group:
    """Rows of one source or annotator; `share_sum` is in billionths, so that it does not depend on the order."""

    rows: int = 0
    unchanged: int = 0
    share_sum: int = 0
    shares: Counter[int] = field(default_factory=Counter)

    @property
    def mean_share(self) -> float:
        """Share of the words that the edit changes, mean over the rows."""
        return self.share_sum / 1e9 / max(self.rows, 1)

    def merge(self, other: Group) -> None:
        """Add the counts of `other`."""
        self.rows += other.rows
        self.unchanged += other.unchanged
        self.share_sum += other.share_sum
        self.shares.update(other.shares)


@dataclass
class TokenCounts:
    """What a tokenizer makes of the rows.

    Attributes:
        sides: Responses, two a row.
        tokens: Their tokens.
        edited_tokens: Those that the edit changes.
        edited_token_characters: Characters of these tokens.
        edited_characters: Characters that the edit changes, by an alignment of characters.
        prompts_cut: Rows whose prompt loses tokens to fit `max_length`.
        responses_cut: Rows with a response that loses tokens.
        edits_cut: Edited tokens that are lost so.
        edits_lost: Rows that lose every edited token, on both sides.
        lengths: Prompt and longer response in tokens, in powers of two.
    """

    sides: int = 0
    tokens: int = 0
    edited_tokens: int = 0
    edited_token_characters: int = 0
    edited_characters: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    edits_cut: int = 0
    edits_lost: int = 0
    lengths: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, order=True)
class StrangeRow:
    """A row to look at; rows are ordered by how strange they are."""

    score: float
    line: int
    why: str
    prompt: str
    original: str
    edited: str


@dataclass
class Summary:
    """Everything that is counted of a batch of rows, or of a file.

    Shares are in words (`fgrl.data.share.edit_share`); lengths are in words, in powers of two: bin b counts
    2^(b-1) <= n < 2^b.
    """

    rows: int = 0
    bad: int = 0
    errors: list[str] = field(default_factory=list)
    unchanged: int = 0
    emptied: int = 0
    rewrites: int = 0
    words: int = 0
    edited_words: int = 0
    all: Group = field(default_factory=Group)
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    hunks: Counter[int] = field(default_factory=Counter)
    hunk_words: Counter[int] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    strange: list[StrangeRow] = field(default_factory=list)
    tokens: TokenCounts | None = None
    # Of a batch alone: what only the whole stream can decide.
    replacements: Counter[tuple[str, str]] = field(default_factory=Counter)
    pair_keys: array[int] = field(default_factory=lambda: array("Q"))
    near_keys: array[int] = field(default_factory=lambda: array("Q"))
    prompt_keys: array[int] = field(default_factory=lambda: array("Q"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    annotations: list[tuple[int, str, bytes]] = field(default_factory=list)
    # Of the file alone.
    max_edit_share: float = 0.0
    duplicates: int = 0
    near_duplicates: int = 0
    leaked: int = 0
    examples: dict[str, list[int]] = field(default_factory=dict)
    frequent: list[tuple[tuple[str, str], int]] = field(default_factory=list)
    frequent_error: int = 0
    agreement: Agreement | None = None

    def merge(self, other: Summary) -> None:
        """Add the counts of a later batch."""
        for name in ("rows", "bad", "unchanged", "emptied", "rewrites", "words", "edited_words"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors = (self.errors + other.errors)[:KEPT_ROWS]
        self.all.merge(other.all)
        for key, group in other.groups.items():
            if key not in self.groups and sum(kind == key[0] for kind, _ in self.groups) >= _MAX_GROUPS:
                key = (key[0], OTHERS)
            self.groups.setdefault(key, Group()).merge(group)
        self.hunks.update(other.hunks)
        self.hunk_words.update(other.hunk_words)
        self.lengths.update(other.lengths)
        self.strange = heapq.nlargest(KEPT_ROWS, self.strange + other.strange)
        if other.tokens is not None:
            self.tokens = self.tokens or TokenCounts()
            add_counts(self.tokens, other.tokens)

    def example(self, kind: str, line: int) -> None:
        """Remember the first lines where something is off."""
        lines = self.examples.setdefault(kind, [])
        if len(lines) < KEPT_ROWS:
            lines.append(line)


@dataclass
class Agreement:
    """How two annotators of one response agree about its tokens, over all such pairs.

    Attributes:
        responses: Responses with more than one annotator.
        pairs: Pairs of annotators.
        both, one, neither: Words of the originals that both changed, one of them, and none.
        first, second: Words that the first of each pair changed, and the second.
    """

    responses: int = 0
    pairs: int = 0
    both: int = 0
    one: int = 0
    neither: int = 0
    first: int = 0
    second: int = 0

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond chance, 1 for perfect agreement."""
        total = self.both + self.one + self.neither
        if not total:
            return 1.0
        observed = (self.both + self.neither) / total
        first, second = self.first / total, self.second / total
        expected = first * second + (1 - first) * (1 - second)
        return 1.0 if expected == 1 else (observed - expected) / (1 - expected)

    @property
    def f1(self) -> float:
        """Words both changed, as a share of those that either did on average (F1)."""
        return 2 * self.both / max(2 * self.both + self.one, 1)

    def add(self, one: bytes, other: bytes) -> None:
        """Count a pair of annotators: a flag, 0 or 1, for each word of the original."""
        left, right = int.from_bytes(one, "big"), int.from_bytes(other, "big")
        both, either = (left & right).bit_count(), (left | right).bit_count()
        self.pairs += 1
        self.both += both
        self.one += either - both
        self.neither += len(one) - either
        self.first += left.bit_count()
        self.second += right.bit_count()


def add_counts(into: Any, other: Any) -> None:
    """Add every field of a dataclass of counts."""
    for name, value in vars(other).items():
        if isinstance(value, Counter):
            getattr(into, name).update(value)
        else:
            setattr(into, name, getattr(into, name) + value)
