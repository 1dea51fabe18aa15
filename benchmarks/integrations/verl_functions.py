"""What the adapter replaces in verl, against verl's own: driver advantages, losses and the head.

    python -m benchmarks.integrations.verl_functions [--rounds 5] [--out FILE]

Runs in verl's environment (`make test-integration-verl` makes it). Every pair agrees before anything is timed, and
takes turns on the same inputs. One thread, and its own time, which leaves out what other processes take.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import verl.trainer.ppo.core_algos as core_algos
from torch import Tensor
from verl.utils.experimental.torch_functional import FusedLinearForPPO
from verl.workers.config import FSDPActorConfig

from benchmarks import results, timing
from benchmarks.memory import peak

# Taken before the adapter is imported, which replaces the first two.
THEIR_GAE, THEIR_VALUE_LOSS = core_algos.compute_gae_advantage_return, core_algos.compute_value_loss
THEIR_HEAD = FusedLinearForPPO()

from fgrl.integrations.verl import algorithms  # noqa: E402
from fgrl.integrations.verl.linear import FusedLinear  # noqa: E402

Run = Callable[[], tuple[Tensor, ...]]


def responses(rows: int, width: int) -> Tensor:
    """A mask of ragged responses, half full on average."""
    return torch.arange(width) < torch.randint(1, width + 1, (rows, 1))


def gae(rows: int, width: int) -> dict[str, Run]:
    """Advantages and returns of a batch, as the driver computes them."""
    rewards, values, mask = torch.randn(rows, width), torch.randn(rows, width), responses(rows, width).long()

    def run(function: Any) -> tuple[Tensor, ...]:
        return tuple(torch.where(mask.bool(), found, 0) for found in function(rewards, values, mask, 1.0, 0.95))

    return {"verl": lambda: run(THEIR_GAE), "fgrl": lambda: run(algorithms.gae)}


def policy_loss(rows: int, width: int) -> dict[str, Run]:
    """The loss of a micro-batch and its gradient."""
    old, advantages, mask = torch.randn(rows, width), torch.randn(rows, width), responses(rows, width)
    logprobs = (old + 0.1 * torch.randn(rows, width)).requires_grad_()
    config = FSDPActorConfig(strategy="fsdp2", rollout_n=1, use_dynamic_bsz=True)

    def run(function: Any) -> tuple[Tensor, ...]:
        loss, _ = function(old, logprobs, advantages, mask, "token-mean", config)
        return (loss.detach(), *torch.autograd.grad(loss, logprobs))

    theirs, mine = core_algos.compute_policy_loss_vanilla, algorithms.policy_loss
    return {"verl": lambda: run(theirs), "fgrl": lambda: run(mine)}


def value_loss(rows: int, width: int) -> dict[str, Run]:
    """The loss of a micro-batch and its gradient."""
    old, returns, mask = torch.randn(rows, width), torch.randn(rows, width), responses(rows, width)
    values = (old + 0.1 * torch.randn(rows, width)).requires_grad_()

    def run(function: Any) -> tuple[Tensor, ...]:
        loss, _ = function(values, returns, old, mask, 0.5)
        return (loss.detach(), *torch.autograd.grad(loss, values))

    return {"verl": lambda: run(THEIR_VALUE_LOSS), "fgrl": lambda: run(algorithms.value_loss)}


def head(rows: int, width: int, vocabulary: int) -> dict[str, Run]:
    """Log-probabilities and entropies of packed tokens, and the gradients by hidden states and head."""
    hidden = torch.randn(1, rows, width).requires_grad_()
    weight = (0.05 * torch.randn(vocabulary, width)).requires_grad_()
    ids, weights = torch.randint(vocabulary, (1, rows)), torch.randn(2, 1, rows)

    def run(module: Any) -> tuple[Tensor, ...]:
        found = module.forward(hidden, weight, ids, 0.9)
        total = sum((output * factor).sum() for output, factor in zip(found, weights, strict=True))
        return (*(output.detach() for output in found), *torch.autograd.grad(total, (hidden, weight)))

    return {"verl": lambda: run(THEIR_HEAD), "fgrl": lambda: run(FusedLinear())}


CASES: list[tuple[Callable[..., dict[str, Run]], tuple[int, ...]]] = [
    (gae, (256, 2048)),
    (gae, (256, 8192)),
    (policy_loss, (256, 2048)),
    (value_loss, (256, 2048)),
    (head, (1024, 576, 49152)),
]


def measure(make: Callable[..., dict[str, Run]], shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Medians of interleaved rounds and peaks of memory.

    Raises:
        AssertionError: the two disagree.
    """
    torch.manual_seed(0)
    variants = make(*shape)
    for found, expected in zip(variants["fgrl"](), variants["verl"](), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    return {
        "function": make.__name__,
        "shape": "x".join(map(str, shape)),
        "dtype": "float32",
        "seconds": timing.interleaved(variants, rounds, clock=time.thread_time),
        "peak_bytes": {name: peak(variant, torch.device("cpu")) for name, variant in variants.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(make, shape, options.rounds) for make, shape in CASES]
    for row in rows:
        times, peaks = row["seconds"], row["peak_bytes"]
        print(
            f"{row['function']} {row['shape']}: {times['verl'] * 1e3:.1f} ms -> {times['fgrl'] * 1e3:.2f} ms "
            f"({times['verl'] / times['fgrl']:.2f}x), "
            f"{peaks['verl'] / 2**20:.0f} MiB -> {peaks['fgrl'] / 2**20:.0f} MiB"
        )
    if options.out is not None:
        environment = timing.environment("verl", "transformers")
        environment |= {"date": datetime.now(timezone.utc).date().isoformat(), "device": environment["cpu"]}
        results.update(options.out, environment=environment, verl_functions=rows)


if __name__ == "__main__":
    main()
