"""A batch of rows, measured: the part of an inspection that worker processes do."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from fgrl.data.encode import PairEncoder
from fgrl.data.fields import Row
from fgrl.data.hunks import hunks
from fgrl.data.inspection.summary import KEPT_ROWS, SHARE_BINS, StrangeRow, Summary, TokenCounts
from fgrl.data.pairs import EditedPair, PairReader
from fgrl.data.responses import prompt_text
from fgrl.data.rows import RawRow, RowError
from fgrl.data.segment import words
from fgrl.data.share import edit_share
from fgrl.data.tokens import HuggingFaceTokenizer
from fgrl.ops import align_edits

_SHOWN = 4000  # characters of a text that the report shows
_REPLACEMENT_WORDS = 4
_FLAGS = bytes([0] + [1] * 255)  # EditOp to whether it changes something


@dataclass(frozen=True)
class GroupedPair:
    """A pair, and the fields that it is grouped by."""

    pair: EditedPair
    groups: tuple[tuple[str, str], ...]
    annotator: str | None


class GroupedReader(PairReader):
    """Edited pairs with the fields that they are grouped by."""

    def __init__(self, source: Any, group_by: Sequence[str], *, columns: Mapping[str, str] | None = None):
        super().__init__(source, columns=columns)
        self.group_by = tuple(name for name in group_by if name not in self.columns.values())

    def wanted(self) -> Collection[str]:
        return {*super().wanted(), *self.group_by, "annotator"}

    def grouped(self, row: Row, number: int) -> GroupedPair:
        """The pair of a row, and its groups."""
        pair = self.convert(row, number)
        groups = tuple((name, str(row[name])[:80]) for name in self.group_by if row.get(name) is not None)
        annotator = row.get("annotator")
        return GroupedPair(pair, groups, None if annotator is None else str(annotator))


class Measurer:
    """Measures batches of raw rows.

    Args:
        reader: Says what the columns are called.
        max_edit_share: An edit that changes a larger share of the words is a rewrite.
        tokenizer: A `transformers` tokenizer; None measures words alone.
        max_length: Longest prompt and response in tokens, as in `PairEncoder`.
    """

    def __init__(self, reader: GroupedReader, *, max_edit_share: float, tokenizer: Any = None, max_length: int = 1024):
        self._reader = reader
        self._max_edit_share = max_edit_share
        self._max_length = max_length
        self._tokenizer = None if tokenizer is None else HuggingFaceTokenizer(tokenizer)
        self._encoder = None if tokenizer is None else PairEncoder(tokenizer, max_length=None)

    def __call__(self, rows: Sequence[RawRow]) -> Summary:
        """The summary of a batch; a bad row is counted, and its message kept."""
        result = Summary()
        good = []
        for row in rows:
            try:
                good.append(self._reader.grouped(row.parse(), row.number))
            except ValueError as error:
                self._bad(result, row.number, error)
        if self._encoder is not None:
            good = self._encodable(result, good)
        if good:
            self._count(result, good)
        return result

    def _bad(self, result: Summary, number: int, error: ValueError) -> None:
        result.bad += 1
        if len(result.errors) < KEPT_ROWS:
            try:
                self._reader.fail(number, error)
            except RowError as named:
                result.errors.append(str(named))

    def _encodable(self, result: Summary, rows: list[GroupedPair]) -> list[GroupedPair]:
        """The rows whose prompts the chat template takes, with what the tokenizer makes of them counted."""
        good, encoded = [], []
        assert self._encoder is not None
        for row in rows:
            try:
                encoded += self._encoder([row.pair])
                good.append(row)
            except ValueError as error:
                self._bad(result, row.pair.line, error)
        result.tokens = counts = TokenCounts()
        for row, pair in zip(good, encoded, strict=True):
            limit = self._max_length
            sides = ((pair.original_ids, pair.original_edits), (pair.edited_ids, pair.edited_edits))
            longer = max(len(ids) for ids, _ in sides)
            counts.sides += 2
            counts.tokens += sum(len(ids) for ids, _ in sides)
            edited = sum(sum(edits) for _, edits in sides)
            lost = sum(sum(edits[limit:]) for _, edits in sides)
            counts.edited_tokens += edited
            counts.edits_cut += lost
            counts.edits_lost += bool(edited) and lost == edited
            counts.responses_cut += longer > limit
            counts.prompts_cut += len(pair.prompt_ids) > max(limit - longer, 0)
            counts.lengths[(len(pair.prompt_ids) + longer).bit_length()] += 1
            if edited:
                self._count_characters(counts, row.pair, [edits for _, edits in sides])
        return good

    def _count_characters(self, counts: TokenCounts, pair: EditedPair, edits: list[list[bool]]) -> None:
        """Characters that the edit changes, and characters of the tokens it changes."""
        assert self._tokenizer is not None
        texts = (pair.original, pair.edited)
        for tokens, flags in zip(self._tokenizer(texts), edits, strict=True):
            offsets = [span for span, flag in zip(tokens.offsets, flags, strict=False) if flag]
            counts.edited_token_characters += len({at for start, end in offsets for at in range(start, end)})
        alignment = align_edits(*([list(map(ord, text))] for text in texts), num_threads=1)
        for text, labels in zip(texts, (alignment.original_ops, alignment.edited_ops), strict=True):
            counts.edited_characters += sum(
                1 for char, label in zip(text, labels.tolist(), strict=True) if label and not char.isspace()
            )

    def _count(self, result: Summary, rows: list[GroupedPair]) -> None:
        originals = [words(row.pair.original) for row in rows]
        editeds = [
            original if row.pair.original == row.pair.edited else words(row.pair.edited)
            for row, original in zip(rows, originals, strict=True)
        ]
        changed = [(one, other) for one, other in zip(originals, editeds, strict=True) if one is not other]
        number = _Numbers().__getitem__
        alignment = align_edits(
            [list(map(number, one)) for one, _ in changed],
            [list(map(number, other)) for _, other in changed],
            num_threads=1,
        )
        distances = iter(alignment.distance.tolist())
        labels = (alignment.original_ops.numpy().tobytes(), alignment.edited_ops.numpy().tobytes())
        i = j = 0
        for row, original, edited in zip(rows, originals, editeds, strict=True):
            if original is edited:
                self._count_row(result, row, original, edited, 0, (bytes(len(original)),) * 2)
                continue
            ops = labels[0][i : i + len(original)], labels[1][j : j + len(edited)]
            i, j = i + len(original), j + len(edited)
            self._count_row(result, row, original, edited, next(distances), ops)

    def _count_row(
        self,
        result: Summary,
        row: GroupedPair,
        original: list[str],
        edited: list[str],
        distance: int,
        ops: tuple[bytes, bytes],
    ) -> None:
        pair = row.pair
        share = edit_share(distance, len(original), len(edited))
        share_bin = min(int(share * SHARE_BINS), SHARE_BINS - 1)
        unchanged = pair.original == pair.edited
        some = [] if distance == 0 else hunks(*ops)
        result.rows += 1
        result.words += len(original)
        result.edited_words += distance
        result.unchanged += unchanged
        result.emptied += bool(original) and not edited
        result.rewrites += share > self._max_edit_share
        result.hunks[min(len(some), 20)] += 1
        result.lengths[len(original).bit_length()] += 1
        groups = [result.all]
        for key in row.groups:
            groups.append(result.groups.setdefault(key, type(result.all)()))
        for group in groups:
            group.rows += 1
            group.unchanged += unchanged
            group.share_sum += round(share * 1e9)
            group.shares[share_bin] += 1
        for i1, i2, j1, j2 in some:
            result.hunk_words[min(max(i2 - i1, j2 - j1), 20)] += 1
            if i2 - i1 <= _REPLACEMENT_WORDS and j2 - j1 <= _REPLACEMENT_WORDS:
                result.replacements[" ".join(original[i1:i2]), " ".join(edited[j1:j2])] += 1
        self._keys(result, row, original, edited, ops[0])
        why = self._strangeness(share, len(some), original, edited)
        if why is not None and (len(result.strange) < KEPT_ROWS or why[0] > result.strange[0].score):
            texts = (prompt_text(pair.prompt), pair.original, pair.edited)
            strange = StrangeRow(why[0], pair.line, why[1], *(text[:_SHOWN] for text in texts))
            push = heapq.heappush if len(result.strange) < KEPT_ROWS else heapq.heappushpop
            push(result.strange, strange)

    @staticmethod
    def _keys(result: Summary, row: GroupedPair, original: list[str], edited: list[str], ops: bytes) -> None:
        pair = row.pair
        prompt = pair.prompt if isinstance(pair.prompt, str) else prompt_text(pair.prompt)
        prompt_key = _hash(prompt)
        result.lines.append(pair.line)
        result.prompt_keys.append(prompt_key)
        result.pair_keys.append(_hash(f"{prompt}\0{pair.original}\0{pair.edited}"))
        letters = "".join([*filter(str.isalpha, original), "\0", *filter(str.isalpha, edited)])
        result.near_keys.append(_hash(f"{prompt}\0{letters}".casefold()))
        if row.annotator is not None:
            response = _hash(f"{prompt}\0{pair.original}")
            result.annotations.append((response, row.annotator, ops.translate(_FLAGS)))

    def _strangeness(
        self, share: float, count: int, original: list[str], edited: list[str]
    ) -> tuple[float, str] | None:
        """How strange an edit is, and why; None for one that is not changed."""
        if not count:
            return None
        longer, shorter = max(len(original), len(edited)), min(len(original), len(edited))
        if not shorter:
            return 3.0, "one side is empty"
        stretched = longer / shorter
        if stretched > 2 and longer > 20:
            return 2.0 + min(stretched / 1000, 0.99), f"{stretched:.1f} times as long on one side"
        weight = min(longer / 1000, 0.99) if share > self._max_edit_share else 0.0
        return share + weight / 10, f"{share:.0%} of the words changed, in {count} places"


class _Numbers(dict[str, int]):
    """Numbers words as they are first asked for."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def prompt_keys(reader: Any, batch: Sequence[RawRow]) -> list[int]:
    """Keys of the prompts of some rows of a held-out file."""
    return [_hash(prompt_text(row["prompt"])) for row in map(reader.read, batch) if row is not None]
