"""A tiny GRPO task: four prompts, completions of eight tokens, rewards that depend on the tokens alone."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig

PROMPTS = Dataset.from_dict({"prompt": ["the cat", "a dog ran", "who is", "what was the capital of France"]})
GENERATIONS = 4


def outcome(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """One number a completion."""
    return [float(sum(token % 3 == 0 for token in ids)) for ids in completion_ids]


def by_token(completion_ids: list[list[int]], **_: Any) -> list[list[float]]:
    """One number a token."""
    return [[float(token % 3 == 0) - 0.25 * (token % 2) for token in ids] for ids in completion_ids]


def config(folder: Path, **options: Any) -> GRPOConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "num_generations": GENERATIONS,
        "per_device_train_batch_size": GENERATIONS,
        "max_completion_length": 8,
        "gradient_checkpointing": False,
    }
    return GRPOConfig(**{**defaults, **options})


def history(trainer: Any) -> list[dict[str, float]]:
    """What was logged at each step, without times."""
    return [
        {name: value for name, value in row.items() if not name.endswith(("time", "_per_second"))}
        for row in trainer.state.log_history
        if "loss" in row
    ]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def expected_advantages(
    token_rewards: list[Any],
    masks: list[list[int]],
    size: int,
    *,
    outcomes: list[float] | None = None,
    scale: str = "group",
    gamma: float = 1.0,
) -> list[list[float]]:
    """By scalar loops; None in `token_rewards`: nobody scored the completion."""
    result = [[0.0] * len(mask) for mask in masks]
    everything = [
        rewards[t]
        for rewards, mask in zip(token_rewards, masks, strict=True)
        if rewards
        for t, m in enumerate(mask)
        if m
    ]
    for start in range(0, len(masks), size):
        rows = range(start, start + size)
        items = [token_rewards[i][t] for i in rows if token_rewards[i] for t, m in enumerate(masks[i]) if m]
        of = {"group": items, "batch": everything}.get(scale, [])
        spread = statistics.stdev(of) + 1e-6 if scale != "none" else 1.0
        for i in rows:
            after = 0.0
            for t in reversed(range(len(masks[i]))):
                if masks[i][t] and token_rewards[i]:
                    after = (token_rewards[i][t] - statistics.mean(items)) / spread + gamma * after
                    result[i][t] = after
        if outcomes is not None:
            group = [outcomes[i] for i in rows]
            of = {"group": group, "batch": outcomes}.get(scale, [])
            spread = statistics.stdev(of) + 1e-4 if scale != "none" else 1.0
            for i in rows:
                for t, valid in enumerate(masks[i]):
                    result[i][t] += valid * (outcomes[i] - statistics.mean(group)) / spread
    return result


ENDS = 2  # the tiny tokenizer's end of sequence
# Two prompts, four completions each, of different lengths; 0 in the mask: written by a tool, not by the policy.
ROLLOUT = {
    "prompt_ids": [[5, 6, 7]] * 4 + [[8]] * 4,
    "completion_ids": [
        [9, 12, 14, ENDS], [10, ENDS], [11, 13, 15, 18, 20, ENDS], [30, 31, 32, 33],
        [40, ENDS], [41, 42, ENDS], [ENDS], [43, 45],
    ],
    "env_mask": [[1, 1, 1, 1], [1, 1], [1, 0, 0, 1, 1, 1], [1, 1, 1, 1], [1, 1], [1, 0, 1], [1], [1, 1]],
}  # fmt: skip


def rollout(prompts: Any, trainer: Any) -> dict[str, Any]:
    return {**ROLLOUT, "logprobs": [[-1.0] * len(ids) for ids in ROLLOUT["completion_ids"]]}


IDS = ROLLOUT["completion_ids"]
