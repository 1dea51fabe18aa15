"""The demo's small language models: a BPE tokenizer and a Llama-architecture transformer, trained from nothing on the
prose."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fgrl.demo.config import ModelSize, PretrainConfig

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` entries, trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    printable = [chr(code) for code in range(0x21, 0x7F)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=[*printable, "Ġ"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(size: ModelSize, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A freshly initialised model whose vocabulary is the tokenizer's."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        num_key_value_heads=size.num_attention_heads,
        max_position_embeddings=size.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class TextWindows:
    """Windows of text that begin at a sentence, as the prompts do.

    Args:
        documents: sentences in order; several versions of one document (with different misspellings) may be given.
        tokenizer: turns each sentence into tokens; sentences are joined by a space.
        window: tokens in a window.
    """

    def __init__(self, documents: Iterable[Sequence[str]], tokenizer: PreTrainedTokenizerFast, window: int) -> None:
        stream: list[int] = []
        starts: list[int] = []
        for document in documents:
            rows = tokenizer([sentence + " " for sentence in document])["input_ids"]
            for row in rows:
                starts.append(len(stream))
                stream.extend(row)
        last = len(stream) - window
        if last < 0:
            raise ValueError(f"documents has {len(stream)} tokens; it must have at least {window}")
        self.tokens = torch.tensor(stream)
        self._starts = torch.tensor([start for start in starts if start <= last])
        self._window = window

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` windows drawn with replacement: [count, window] int64."""
        starts = self._starts[torch.randint(len(self._starts), (count,), generator=generator)]
        return self.tokens[starts[:, None] + torch.arange(self._window)]


def pretrain(
    model: LlamaForCausalLM,
    windows: TextWindows,
    config: PretrainConfig,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `model` on next-token prediction, in place.

    Args:
        model: the model.
        windows: the text.
        config: steps, batch and optimizer settings.
        seed: decides which windows are drawn.
        on_step: called with the step (from 1) and its loss.

    Returns:
        The loss of each step, in nats a token.
    """
    generator = torch.Generator().manual_seed(seed)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    other = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": other, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    model.train()
    losses: list[float] = []
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config)
        tokens = windows.sample(config.batch_size, generator)
        logits = model(input_ids=tokens).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if on_step is not None:
            on_step(step + 1, losses[-1])
    model.eval()
    return losses


def _schedule(step: int, config: PretrainConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * progress))


@torch.no_grad()
def sample_responses(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    new_tokens: int,
    seed: int,
    batch_size: int = 64,
    on_batch: Callable[[float], None] | None = None,
) -> list[str]:
    """One response of exactly `new_tokens` tokens to each prompt, sampled at temperature 1 from the whole distribution.

    `on_batch` is called with the share of the prompts that is done.
    """
    torch.manual_seed(seed)
    model.eval()
    responses: list[str] = []
    for start in range(0, len(prompts), batch_size):
        batch = tokenizer(list(prompts[start : start + batch_size]), return_tensors="pt", padding=True)
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        new = output[:, batch["input_ids"].shape[1] :]
        responses.extend(tokenizer.batch_decode(new, skip_special_tokens=True))
        if on_batch is not None:
            on_batch(len(responses) / len(prompts))
    return responses


@torch.no_grad()
def negative_log_likelihood(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    responses: Sequence[str],
    batch_size: int = 64,
) -> list[tuple[float, int]]:
    """`(sum of -log p in nats, tokens)` of each response after its prompt."""
    model.eval()
    results: list[tuple[float, int]] = []
    for start in range(0, len(prompts), batch_size):
        heads = tokenizer(list(prompts[start : start + batch_size]))["input_ids"]
        tails = tokenizer(list(responses[start : start + batch_size]))["input_ids"]
        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, (row, head) in enumerate(zip(rows, heads, strict=True)):
            tokens[i, : len(row)] = torch.tensor(row)
            mask[i, len(head) : len(row)] = True
        logprobs = model(input_ids=tokens).logits[:, :-1].float().log_softmax(-1)
        picked = logprobs.gather(-1, tokens[:, 1:, None])[..., 0]
        nll = -picked.masked_fill(~mask[:, 1:], 0.0).sum(-1)
        results.extend(zip(nll.tolist(), mask.sum(-1).tolist(), strict=True))
    return results


def noisy_copies(
    documents: Sequence[Sequence[str]],
    misspell: Callable[[str, random.Random], str],
    copies: int,
    rng: random.Random,
) -> list[list[str]]:
    """Every document `copies` times, each time with mistakes of its own."""
    return [[misspell(sentence, rng) for sentence in document] for _ in range(copies) for document in documents]
