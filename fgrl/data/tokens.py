"""Text to tokens with their character ranges: Hugging Face tokenizers, and a plain one that needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fgrl.data.segment import word_ranges


@dataclass(frozen=True)
class TokenizedText:
    """Tokens of one text.

    Attributes:
        ids: Token ids.
        offsets: Half-open character range of each token in the text, whitespace at its ends left out.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


class TextTokenizer(Protocol):
    """Tokenizes responses in batches. Ids need only agree within one call."""

    def __call__(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize each text."""

    def pieces(self, text: str, tokens: TokenizedText) -> list[str]:
        """The tokens of `text` in readable form."""


class PlainTokenizer:
    """Words and punctuation marks as tokens: no model, no vocabulary. White space is no token."""

    def __call__(self, texts: Sequence[str]) -> list[TokenizedText]:
        vocabulary: dict[str, int] = {}  # of this call only: a lasting one would grow with the file
        result = []
        for text in texts:
            offsets = word_ranges(text)
            ids = [vocabulary.setdefault(text[start:end], len(vocabulary)) for start, end in offsets]
            result.append(TokenizedText(ids, offsets))
        return result

    def pieces(self, text: str, tokens: TokenizedText) -> list[str]:
        return [text[start:end] for start, end in tokens.offsets]


class HuggingFaceTokenizer:
    """A `transformers` tokenizer applied to responses: no special tokens are added.

    Fast tokenizers report the character range of every token. A slow one does not: each token's text is then searched
    in the response, in order, and a token that is not found (a normalised character, a byte of a character) takes
    everything between its neighbours. The ranges are exact where tokens decode to the text they came from.

    Args:
        tokenizer: A `transformers.PreTrainedTokenizerBase`.
        drop_last: A token id that is left out where a text ends in it (an end-of-sequence token spelled out).
    """

    def __init__(self, tokenizer: Any, *, drop_last: int | None = None):
        self.tokenizer = tokenizer
        self.drop_last = drop_last

    def __call__(self, texts: Sequence[str]) -> list[TokenizedText]:
        if not texts:
            return []
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_offsets_mapping=fast,
            verbose=False,
        )
        result = []
        for index, text in enumerate(texts):
            ids = list(encoded["input_ids"][index])
            raw = encoded["offset_mapping"][index] if fast else self._search(ids, text)
            if ids and ids[-1] == self.drop_last:
                ids.pop()
            offsets = [_trim(text, start, end) for start, end in raw[: len(ids)]]
            result.append(TokenizedText(ids, offsets))
        return result

    def pieces(self, text: str, tokens: TokenizedText) -> list[str]:
        return list(self.tokenizer.convert_ids_to_tokens(tokens.ids))

    def _search(self, ids: list[int], text: str) -> list[tuple[int, int]]:
        starts: list[int | None] = []
        ends: list[int] = []
        at = 0
        for token in ids:
            piece = self.tokenizer.decode([token], clean_up_tokenization_spaces=False).strip()
            found = text.find(piece, at, at + len(piece) + 64) if piece else -1
            if found >= 0:
                at = found + len(piece)
            starts.append(found if found >= 0 else None)
            ends.append(at)
        # A token that was not found starts where the one before it ends and reaches to the next one that was found.
        offsets, following = [], len(text)
        for index in reversed(range(len(ids))):
            start = starts[index]
            offsets.append((ends[index], following) if start is None else (start, ends[index]))
            following = start if start is not None else following
        return offsets[::-1]


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out the white space at both ends: " cat" belongs to the word "cat" and not to the space before it."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
