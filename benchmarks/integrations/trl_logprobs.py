"""The log-probability step of TRL's GRPO, stock and with `patch_logprobs`: time and peak memory.

    python -m benchmarks.integrations.trl_logprobs [--vocabulary 49152] [--out FILE]

A step is what a GRPO update does around the head: the fused forward pass of a model (TRL's `add_fused_lm_head`) for
log-probabilities and entropies of the completions, and the backward pass to the head and the hidden states. The
backbone is one narrow layer, so that the head is what is measured; the embedding is frozen. Results agree before
anything is timed. On one thread its own time is taken, which leaves out that of other processes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from benchmarks import results, timing
from benchmarks.memory import peak
from fgrl.integrations.trl import patch_logprobs


class Shape(NamedTuple):
    """Sequences of `prompt + completion` tokens; the head of a released model."""

    model: str
    vocabulary: int
    width: int
    batch: int
    prompt: int
    completion: int

    def __str__(self) -> str:
        return f"{self.batch}x({self.prompt} + {self.completion})x{self.width}x{self.vocabulary}"


SHAPES = [
    Shape(model, vocabulary, width, batch, prompt, 512 - prompt)
    for model, vocabulary, width, batch in (("SmolLM2-135M", 49152, 576, 2), ("Qwen2.5-0.5B", 151936, 896, 1))
    for prompt in (256, 1)
]


def step(shape: Shape) -> Callable[[bool], tuple[torch.Tensor, torch.Tensor]]:
    """A function that runs one step, patched or not, and returns the loss and the head's gradient."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.width,
        num_hidden_layers=1,
        num_attention_heads=shape.width // 64,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.get_input_embeddings().weight.requires_grad_(False)
    add_fused_lm_head(model, temperature=0.9, outputs=("log_probs", "entropy"))
    input_ids = torch.randint(0, shape.vocabulary, (shape.batch, shape.prompt + shape.completion))
    labels = input_ids.clone()
    labels[:, : shape.prompt] = -100
    advantages = torch.randn(shape.batch, shape.prompt + shape.completion - 1)

    def run(patched: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        with patch_logprobs() if patched else nullcontext():
            output = model(input_ids, labels=labels, fused_lm_head=True)
        loss = -(output.log_probs * advantages).sum() / labels.numel()
        loss.backward()
        return loss.detach(), model.lm_head.weight.grad

    return run


def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    """Medians of interleaved rounds, and peaks; the two variants' results agree.

    Raises:
        AssertionError: they do not.
    """
    run = step(shape)
    (stock_loss, stock_grad), (loss, grad) = run(False), run(True)
    torch.testing.assert_close(loss, stock_loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad, stock_grad, rtol=1e-3, atol=1e-6)
    del stock_grad, grad
    variants = {"trl": lambda: run(False), "fgrl": lambda: run(True)}
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = timing.interleaved(variants, rounds, clock)
    peaks = {name: peak(variant, torch.device("cpu")) for name, variant in variants.items()}
    return {"shape": str(shape), **shape._asdict(), "dtype": "float32", "seconds": seconds, "peak_bytes": peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vocabulary", type=int, choices=sorted({shape.vocabulary for shape in SHAPES}))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON; measurements of other vocabularies in it stay")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for shape in SHAPES:
        if options.vocabulary in (None, shape.vocabulary):
            row = measure(shape, options.rounds)
            times, peaks = row["seconds"], row["peak_bytes"]
            print(
                f"{row['shape']}: {times['trl']:.2f} s -> {times['fgrl']:.2f} s ({times['trl'] / times['fgrl']:.2f}x), "
                f"{peaks['trl'] / 2**20:.0f} -> {peaks['fgrl'] / 2**20:.0f} MiB ({peaks['trl'] / peaks['fgrl']:.1f}x)",
                flush=True,
            )
            if options.out is not None:
                save(row, options.out)


def save(row: dict[str, Any], path: Path) -> None:
    """Put a measurement into the file, in place of an older one of its shape."""
    environment = timing.environment("trl", "transformers")
    environment |= {"date": datetime.now(timezone.utc).date().isoformat(), "device": environment["cpu"]}
    kept = results.load(path).get("trl_logprobs", []) if path.exists() else []
    rows = [*(other for other in kept if other["shape"] != row["shape"]), row]
    results.update(path, environment=environment, trl_logprobs=sorted(rows, key=lambda row: row["shape"]))


if __name__ == "__main__":
    main()
