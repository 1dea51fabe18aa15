"""The libraries measured beside ours, each imported when it is first asked for; a missing one is a grey cell.

`pip install --no-deps -r requirements/peers.txt` installs those that run on a CPU. No code of theirs is copied:
what is restated here is a formula, where importing it takes a library's whole environment.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor

from benchmarks.registry import Unavailable

PACKAGES = ("verl", "trl", "liger-kernel", "torchrl", "cut-cross-entropy", "rapidfuzz", "levenshtein")


def versions() -> dict[str, str]:
    """Versions of the packages that are installed, of all that are measured."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def load(module: str) -> Any:
    """An imported module of a peer.

    Raises:
        Unavailable: it cannot be imported.
    """
    try:
        return import_module(module)
    except Exception as error:  # a peer's import may fail in any way
        raise Unavailable(f"{module.split('.')[0]} cannot be imported ({error})".splitlines()[0]) from error


def on_gpu(tensor: Tensor, module: str) -> Any:
    """`load`, for a peer whose kernels run on CUDA tensors only."""
    if not tensor.is_cuda:
        raise Unavailable("runs on CUDA only")
    return load(module)


@cache
def verl_actor_config() -> Any:
    """What verl's policy loss reads of its configuration, at our defaults, with its dual clip out of reach."""
    config = load("verl.workers.config").ActorConfig
    return config(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=0.2,
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
        clip_ratio_c=1e9,
    )


def openrlhf_gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """The recursion of OpenRLHF 0.11.2, whose import needs deepspeed and flash-attn.

    Masked by multiplication and then run over the padding: right as long as masks have no holes.
    """
    rewards, values = rewards * mask, values * mask
    after = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], 1)
    deltas = rewards + gamma * after - values
    advantage, columns = torch.zeros_like(deltas[:, 0]), []
    for delta in deltas.flip(1).unbind(1):
        advantage = delta + gamma * lam * advantage
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], 1)
    return advantages, advantages + values


def compacted(logprobs_of: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities of the valid rows, laid back where they belong, as TRL does around its kernel."""
    rows = logprobs_of(hidden[mask], targets[mask])
    return rows.new_zeros(mask.shape).masked_scatter(mask, rows)
