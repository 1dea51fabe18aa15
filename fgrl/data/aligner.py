"""Responses to aligned tokens: tokenize both sides of each pair, align a batch at once, mark what the edit changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fgrl.data.pairs import EditedPair
from fgrl.data.tokens import TextTokenizer, TokenizedText
from fgrl.data.words import overlapping, widen_to_words
from fgrl.ops import align_edits

if TYPE_CHECKING:
    from fgrl.alignment import EditAlignment

EditUnit = Literal["token", "word"]


@dataclass(frozen=True)
class AlignedPair:
    """Both responses of one pair, tokenized and aligned.

    Attributes:
        pair: The pair as read.
        original: Tokens of the original response, `n` of them.
        edited: Tokens of the edited response, `m` of them.
        original_labels: `fgrl.EditOp` code of each original token, `[n]`: KEEP, SUBSTITUTE or DELETE.
        edited_labels: `fgrl.EditOp` code of each edited token, `[m]`: KEEP, SUBSTITUTE or INSERT.
        original_edits: Original tokens that count as edited, `[n]`: not kept, or in a word that is edited.
        edited_edits: Edited tokens that count as edited, `[m]`.
        original_errors: Original tokens that the pair's human error spans touch, `[n]`; None without spans.
        alignment: The alignment of the batch the pair was in.
        index: The pair's place in that batch.
    """

    pair: EditedPair
    original: TokenizedText
    edited: TokenizedText
    original_labels: list[int]
    edited_labels: list[int]
    original_edits: list[bool]
    edited_edits: list[bool]
    original_errors: list[bool] | None
    alignment: EditAlignment
    index: int

    @property
    def distance(self) -> int:
        """Number of token edits."""
        return int(self.alignment.distance[self.index])

    @property
    def opcodes(self) -> list[tuple[str, int, int, int, int]]:
        """The edit as difflib-style `(tag, i1, i2, j1, j2)`, in tokens."""
        return list(self.alignment.opcodes(self.index))


class ResponseAligner:
    """Tokenizes and aligns the two responses of each pair, one `align_edits` call a batch.

    Args:
        tokenizer: Turns texts into tokens with character ranges.
        edit_unit: "token" marks the tokens of the alignment's edits; "word" widens each edit to every token of the
            words it touches (`fgrl.data.words.widen_to_words`), because pieces of a wrong word often survive an edit.
    """

    def __init__(self, tokenizer: TextTokenizer, *, edit_unit: EditUnit = "token"):
        if edit_unit not in ("token", "word"):
            raise ValueError(f"edit_unit is {edit_unit!r}; it must be 'token' or 'word'")
        self.tokenizer = tokenizer
        self.edit_unit = edit_unit

    def __call__(self, pairs: Sequence[EditedPair]) -> list[AlignedPair]:
        if not pairs:
            return []
        texts = [pair.original for pair in pairs] + [pair.edited for pair in pairs]
        tokens = self.tokenizer(texts)
        originals, editeds = tokens[: len(pairs)], tokens[len(pairs) :]
        alignment = align_edits([side.ids for side in originals], [side.ids for side in editeds])
        original_labels = _split(alignment.original_ops.tolist(), originals)
        edited_labels = _split(alignment.edited_ops.tolist(), editeds)
        result = []
        for index, pair in enumerate(pairs):
            original, edited = originals[index], editeds[index]
            original_edits = [label != 0 for label in original_labels[index]]  # EditOp.KEEP is 0
            edited_edits = [label != 0 for label in edited_labels[index]]
            if self.edit_unit == "word":
                original_edits, edited_edits = widen_to_words(
                    (pair.original, original), (pair.edited, edited), original_edits, edited_edits
                )
            spans = pair.error_spans
            result.append(
                AlignedPair(
                    pair=pair,
                    original=original,
                    edited=edited,
                    original_labels=original_labels[index],
                    edited_labels=edited_labels[index],
                    original_edits=original_edits,
                    edited_edits=edited_edits,
                    original_errors=None if spans is None else overlapping(original.offsets, spans),
                    alignment=alignment,
                    index=index,
                )
            )
        return result


def _split(values: list[int], tokens: Sequence[TokenizedText]) -> list[list[int]]:
    parts, start = [], 0
    for side in tokens:
        parts.append(values[start : start + len(side.ids)])
        start += len(side.ids)
    return parts
