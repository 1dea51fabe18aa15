"""Encoded pairs to batches of tensors, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fgrl.data.encode import EncodedPair


class PairCollator:
    """Collates encoded pairs: the edited sides first (chosen), then the original sides (rejected).

    Sequence `i` of the `2B` is prompt plus edited response of pair `i`; sequence `B + i` is the same prompt plus its
    original response.

    Padded (padding on the right), `T` the longest sequence rounded up to `pad_to_multiple_of`:

    - `input_ids` `[2B, T]` int64; `attention_mask` `[2B, T]` int64;
    - `response_mask` `[2B, T]` bool: response tokens, its end-of-sequence token included;
    - `edits` `[2B, T]` bool: tokens the edit inserts, substitutes or deletes (a subset of the response);
    - `error_mask` `[2B, T]` bool: tokens in human error spans, on original sides only;
    - `has_errors` `[2B]` bool: sequences on which a human looked for errors (and perhaps found none).

    Packed: the same keys with shape `[1, N]`, all sequences end to end, and `position_ids` `[1, N]` int64 that restart
    at 0 with each, and `cu_seqlens` `[2B + 1]` int32. `attention_mask` is None there, because Hugging Face models
    separate packed sequences by their position ids only when they get no mask; call them with `use_cache=False`,
    since a cache has the same effect as a mask.

    Args:
        pad_token_id: Fills `input_ids` where `attention_mask` is 0; any token of the vocabulary will do
            (`pad_token_id(tokenizer)` finds one).
        packed: Whether to pack instead of padding.
        pad_to_multiple_of: Round `T` up to a multiple of this; padded batches only.

    Raises:
        ValueError: `pad_token_id` is no token id, or `pad_to_multiple_of` is given with `packed`; when called, the
            batch is empty.
    """

    def __init__(self, pad_token_id: int, *, packed: bool = False, pad_to_multiple_of: int | None = None):
        if isinstance(pad_token_id, bool) or not isinstance(pad_token_id, int) or pad_token_id < 0:
            raise ValueError(
                f"pad_token_id is {pad_token_id!r}; it must be a token id, as fgrl.data.pad_token_id(tokenizer) finds"
            )
        if pad_to_multiple_of is not None and (packed or pad_to_multiple_of < 1):
            raise ValueError(
                f"pad_to_multiple_of is {pad_to_multiple_of} with packed={packed}; it must be at least 1, and padded"
            )
        self.pad_token_id = pad_token_id
        self.packed = packed
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
        if not pairs:
            raise ValueError("pairs is empty; it must have at least one pair")
        rows = [_sequence(pair, edited=True) for pair in pairs] + [_sequence(pair, edited=False) for pair in pairs]
        lengths = [len(row["input_ids"]) for row in rows]
        has_errors = [False] * len(pairs) + [pair.original_errors is not None for pair in pairs]
        batch: dict[str, Any] = self._pack(rows, lengths) if self.packed else self._pad(rows, lengths)
        batch["has_errors"] = torch.tensor(has_errors)
        return batch

    def _pad(self, rows: list[dict[str, list[int]]], lengths: list[int]) -> dict[str, Any]:
        multiple = self.pad_to_multiple_of or 1
        width = max(-(-max(lengths) // multiple), 1) * multiple
        positions = torch.arange(width)
        batch = {name: _padded([row[name] for row in rows], width, name, self.pad_token_id) for name in rows[0]}
        attention_mask = (positions < torch.tensor(lengths)[:, None]).long()
        return {"input_ids": batch.pop("input_ids"), "attention_mask": attention_mask, **batch}

    def _pack(self, rows: list[dict[str, list[int]]], lengths: list[int]) -> dict[str, Any]:
        batch = {
            name: torch.tensor([value for row in rows for value in row[name]], dtype=_dtype(name))[None]
            for name in rows[0]
        }
        cu_seqlens = torch.zeros(len(rows) + 1, dtype=torch.int32)
        cu_seqlens[1:] = torch.tensor(lengths, dtype=torch.int64).cumsum(0)
        positions = torch.tensor([at for length in lengths for at in range(length)], dtype=torch.int64)
        return {
            "input_ids": batch.pop("input_ids"),
            "attention_mask": None,
            "position_ids": positions[None],
            **batch,
            "cu_seqlens": cu_seqlens,
        }


def pad_token_id(tokenizer: Any) -> int:
    """A token id to pad with: the tokenizer's padding token, else its end-of-sequence token, else 0.

    Padding never reaches a result, so that any token of the vocabulary serves a tokenizer that has none.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _sequence(pair: EncodedPair, *, edited: bool) -> dict[str, list[Any]]:
    ids = pair.edited_ids if edited else pair.original_ids
    edits = pair.edited_edits if edited else pair.original_edits
    errors = None if edited else pair.original_errors
    outside = [False] * len(pair.prompt_ids)
    return {
        "input_ids": [*pair.prompt_ids, *ids],
        "response_mask": [*outside, *([True] * len(ids))],
        "edits": [*outside, *edits],
        "error_mask": [*outside, *(errors if errors is not None else [False] * len(ids))],
    }


def _dtype(name: str) -> torch.dtype:
    return torch.int64 if name == "input_ids" else torch.bool


def _padded(values: list[list[Any]], width: int, name: str, pad: int) -> Tensor:
    fill = pad if name == "input_ids" else False
    rows = [row + [fill] * (width - len(row)) for row in values]
    return torch.tensor(rows, dtype=_dtype(name))
