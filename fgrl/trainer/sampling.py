"""Sampling completions with a model's own `generate`, from exactly the distribution the options name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

RESERVED = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "max_new_tokens",
    "max_length",
    "num_return_sequences",
    "num_beams",
    "pad_token_id",
    "eos_token_id",
    "stop_strings",
    "stopping_criteria",
    "generation_config",
    "return_dict_in_generate",
)


@dataclass(frozen=True)
class Completions:
    """Prompts `[B, P]`, padded on the left, and completions `[B, T]`, padded on the right, as one `[B, P + T]`."""

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor  # [B, T], true up to and including the end-of-sequence token
    finished: Tensor  # [B], true where there is an end-of-sequence token

    @property
    def length(self) -> int:
        """T, the length of the longest completion."""
        return self.completion_mask.shape[1]

    @property
    def completion_ids(self) -> Tensor:
        """`[B, T]`."""
        return self.input_ids[:, -self.length :]

    def rows(self, start: int, stop: int) -> Completions:
        """Sequences `start` to `stop`."""
        return Completions(**{item.name: getattr(self, item.name)[start:stop] for item in fields(self)})

    def parts(self, size: int) -> Iterator[Completions]:
        """The sequences, `size` at a time."""
        for start in range(0, len(self.input_ids), size):
            yield self.rows(start, start + size)

    def as_lists(self) -> list[list[int]]:
        """The token ids of each completion, without padding. Waits for the device once."""
        lengths = self.completion_mask.sum(1).tolist()
        return [ids[:length] for ids, length in zip(self.completion_ids.tolist(), lengths, strict=True)]


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: the tokenizer's end of sequence and the model's, which may be several."""
    ends = model.generation_config.eos_token_id if getattr(model, "generation_config", None) is not None else None
    ends = ends if isinstance(ends, list | tuple) else [ends]
    return sorted({int(token) for token in (*ends, tokenizer.eos_token_id) if token is not None})


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    eos_token_ids: Sequence[int],
    batch_size: int | None = None,
    **options: Any,
) -> Completions:
    """Sample one completion a prompt.

    Args:
        model: a causal LM with `generate`; its own generation config has no say.
        prompt_ids: token ids of each prompt.
        pad_token_id: what fills up the rows.
        eos_token_ids: tokens that end a completion; none: all run to `max_new_tokens`.
        batch_size: sequences sampled at once; default all.
        **options: of `transformers.GenerationConfig`: `max_new_tokens`, `temperature`, `top_k`, ...

    Raises:
        ValueError: a prompt without a token.
    """
    if not all(len(prompt) for prompt in prompt_ids):
        raise ValueError("a prompt is empty; it must have at least one token (a BOS token will do)")
    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompt_ids)
    padded = [[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompt_ids]
    real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompt_ids]
    prompts, prompt_mask = torch.tensor(padded, device=device), torch.tensor(real, device=device)
    config = GenerationConfig(
        do_sample=True, pad_token_id=pad_token_id, eos_token_id=list(eos_token_ids) or None, **options
    )
    size = batch_size or len(prompts)
    was_training = model.training
    model.eval()
    try:
        with _generation_config(model, config):
            sampled = [
                model.generate(input_ids=ids, attention_mask=mask)[:, longest:]  # type: ignore[operator]
                for ids, mask in zip(prompts.split(size), prompt_mask.split(size), strict=True)
            ]
    finally:
        model.train(was_training)
    return _completions(prompts, prompt_mask, sampled, pad_token_id, eos_token_ids)


def _completions(
    prompts: Tensor, prompt_mask: Tensor, sampled: list[Tensor], pad_token_id: int, eos_token_ids: Sequence[int]
) -> Completions:
    length = max(part.shape[1] for part in sampled)
    tokens = prompts.new_full((len(prompts), length), pad_token_id)  # [B, T]
    generated = torch.zeros_like(tokens, dtype=torch.bool)
    start = 0
    for part in sampled:
        rows = slice(start, start + len(part))
        tokens[rows, : part.shape[1]], generated[rows, : part.shape[1]] = part, True
        start += len(part)
    is_eos = generated & torch.isin(tokens, torch.tensor(list(eos_token_ids), device=tokens.device, dtype=tokens.dtype))
    mask = generated & (is_eos.cumsum(1) - is_eos.long() == 0)
    return Completions(
        input_ids=torch.cat([prompts, tokens.masked_fill(~mask, pad_token_id)], dim=1),
        attention_mask=torch.cat([prompt_mask, mask.long()], dim=1),
        completion_mask=mask,
        finished=is_eos.any(1),
    )


@contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Put `config` in the place of the model's own, from which `generate` would fill up what a call leaves open."""
    holders = [model, *([model.get_base_model()] if hasattr(model, "get_base_model") else [])]
    before = [holder.generation_config for holder in holders]
    try:
        for holder in holders:
            holder.generation_config = config
        yield
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generation_config = own
