"""Edited pairs to token ids with edit masks, ready to collate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fgrl.data.aligner import EditUnit, ResponseAligner
from fgrl.data.pairs import EditedPair
from fgrl.data.prompts import PromptEncoder
from fgrl.data.tokens import HuggingFaceTokenizer


@dataclass
class EncodedPair:
    """Token ids of one pair and what the edit changed.

    Attributes:
        prompt_ids: The prompt, shared by both sides.
        original_ids: The original response, `n` tokens.
        edited_ids: The edited response, `m` tokens.
        original_edits: Original tokens that the edit deletes or substitutes, `[n]`.
        edited_edits: Edited tokens that the edit inserts or substitutes, `[m]`.
        original_errors: Original tokens inside human error spans, `[n]`; None where nobody looked.
    """

    prompt_ids: list[int]
    original_ids: list[int]
    edited_ids: list[int]
    original_edits: list[bool]
    edited_edits: list[bool]
    original_errors: list[bool] | None = None


class PairEncoder:
    """Tokenizes, aligns and truncates batches of edited pairs.

    Prompt and response are tokenized apart, so that no token spans their boundary and both sides share the prompt's
    ids exactly. The responses get no special tokens but the end-of-sequence token (`append_eos`), which is never an
    edit; one that the text already ends in is not doubled. A tokenizer without an end-of-sequence token appends none.

    Responses are aligned whole and truncated afterwards, so that cutting one never looks like an edit. To fit
    `max_length`, the prompt loses tokens from the left, as many as the longer response needs, and only a response
    longer than `max_length` itself loses its tail.

    Args:
        tokenizer: A `transformers.PreTrainedTokenizerBase`, fast or slow (slow: see `HuggingFaceTokenizer`).
        max_length: Longest prompt plus response in tokens; None for no limit.
        max_prompt_length: Longest prompt in tokens; None for no limit of its own.
        append_eos: Whether responses end with the tokenizer's end-of-sequence token.
        edit_unit: "token", or "word" to widen each edit to the words it touches, on both sides.
        chat_template: Jinja template for prompts that are messages, instead of the tokenizer's own.

    Raises:
        ValueError: An argument is out of range; when called, a prompt of messages has no usable chat template.

    Example:
        >>> encoder = PairEncoder(tokenizer, max_length=512)  # doctest: +SKIP
        >>> encoder([EditedPair("Sky?", "It is gren.", "It is blue.")])[0].original_edits  # doctest: +SKIP
        [False, False, True, True, False, False]
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int | None = 1024,
        max_prompt_length: int | None = None,
        append_eos: bool = True,
        edit_unit: EditUnit = "token",
        chat_template: str | None = None,
    ):
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length is {max_length}; it must be at least 1, or None")
        if max_prompt_length is not None and max_prompt_length < 1:
            raise ValueError(f"max_prompt_length is {max_prompt_length}; it must be at least 1, or None")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.eos_token_id: int | None = tokenizer.eos_token_id if append_eos else None
        self._prompts = PromptEncoder(tokenizer, max_length=max_prompt_length, chat_template=chat_template)
        responses = HuggingFaceTokenizer(tokenizer, drop_last=self.eos_token_id)
        self._align = ResponseAligner(responses, edit_unit=edit_unit)

    def __call__(self, pairs: Sequence[EditedPair]) -> list[EncodedPair]:
        """Encode a batch, in order."""
        prompts = self._prompts([pair.prompt for pair in pairs], [pair.tools for pair in pairs])
        result = []
        for prompt_ids, aligned in zip(prompts, self._align(pairs), strict=True):
            encoded = EncodedPair(
                prompt_ids=prompt_ids,
                original_ids=aligned.original.ids,
                edited_ids=aligned.edited.ids,
                original_edits=aligned.original_edits,
                edited_edits=aligned.edited_edits,
                original_errors=aligned.original_errors,
            )
            result.append(self._truncate(self._append_eos(encoded)))
        return result

    def _append_eos(self, pair: EncodedPair) -> EncodedPair:
        if self.eos_token_id is None:
            return pair
        return EncodedPair(
            prompt_ids=pair.prompt_ids,
            original_ids=[*pair.original_ids, self.eos_token_id],
            edited_ids=[*pair.edited_ids, self.eos_token_id],
            original_edits=[*pair.original_edits, False],
            edited_edits=[*pair.edited_edits, False],
            original_errors=None if pair.original_errors is None else [*pair.original_errors, False],
        )

    def _truncate(self, pair: EncodedPair) -> EncodedPair:
        limit = self.max_length
        if limit is None:
            return pair
        room = limit - min(limit, max(len(pair.original_ids), len(pair.edited_ids)))
        return EncodedPair(
            prompt_ids=self._prompts.truncate(pair.prompt_ids, room),
            original_ids=pair.original_ids[:limit],
            edited_ids=pair.edited_ids[:limit],
            original_edits=pair.original_edits[:limit],
            edited_edits=pair.edited_edits[:limit],
            original_errors=None if pair.original_errors is None else pair.original_errors[:limit],
        )
