"""What the trainers' tests share: a PPO trainer around the tiny model with its prompts and reward; a reward model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

TEXTS = ("the cat", "a dog ran", "who", "the sky is", "red", "on a mat")
PROMPTS = [{"prompt": text, "wanted": text[0]} for text in TEXTS]


def prefer_low_ids(completion_ids: list[list[int]], **columns: Any) -> list[list[float]]:
    """A token-level reward that a policy can learn in a few steps."""
    return [[1.0 if token < 60 else 0.0 for token in ids] for ids in completion_ids]


@pytest.fixture
def prompts() -> list[dict[str, Any]]:
    """Six prompts with a column of their own."""
    return [dict(row) for row in PROMPTS]


@pytest.fixture
def make_trainer(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> Any:
    """Builds a trainer around a copy of the tiny model; keywords go to the trainer, `config` to its options."""
    transformers = pytest.importorskip("transformers")
    from fgrl import FineGrainedPPOConfig, FineGrainedPPOTrainer

    def make(config: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        options = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 3,
            "max_completion_length": 6,
            "num_ppo_epochs": 2,
            "max_steps": 2,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        arguments = {
            "model": copy.deepcopy(tiny_causal_lm),
            "reward_model": prefer_low_ids,
            "processing_class": tiny_tokenizer,
            "train_dataset": PROMPTS,
            "args": FineGrainedPPOConfig(**{**options, **(config or {})}),
        }
        trainer = FineGrainedPPOTrainer(**{**arguments, **kwargs})
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    return make


@pytest.fixture
def rollout_of() -> Any:
    """Makes a rollout of the six prompts: `rollout_of(trainer)` gives it and what it reported."""
    from fgrl.trainer.ppo_metrics import RunningMeans

    def make(trainer: Any) -> Any:
        by_prompt = {row["prompt"]: row for row in trainer.train_dataset}
        rows = [by_prompt.get(text, trainer.train_dataset[0]) for text in TEXTS]
        metrics = RunningMeans(torch.device("cpu"))
        rollout = trainer._maker.make(trainer._actor_critic, rows, trainer.state, metrics)
        if trainer.args.whiten_advantages:
            rollout = rollout.whitened(None)
        return rollout, metrics.collect(trainer.accelerator)

    return make


@pytest.fixture
def model(tiny_causal_lm: Any) -> Any:
    """The tiny Llama with a random head: a head of zeros would hide the backbone's gradients."""
    from fgrl.models import TokenHead, TokenRewardModel

    model = TokenRewardModel.from_backbone(tiny_causal_lm)
    head = next(module for module in model.modules() if isinstance(module, TokenHead))
    torch.nn.init.normal_(head.weight)
    return model
