"""A tiny GRPO task: four prompts, completions of eight tokens, rewards that depend on the tokens alone."""

from __future__ import annotations

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
