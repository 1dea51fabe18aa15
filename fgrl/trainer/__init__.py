"""Trainers: token reward models from edited pairs, and fine-grained PPO. Imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgrl.trainer.ppo import FineGrainedPPOTrainer
    from fgrl.trainer.ppo_config import FineGrainedPPOConfig
    from fgrl.trainer.reward import TokenRewardTrainer
    from fgrl.trainer.reward_config import TokenRewardConfig
    from fgrl.trainer.reward_metrics import RankAUC, RewardMetrics
    from fgrl.trainer.teacher import TeacherReward

_HOMES = {
    "FineGrainedPPOConfig": "fgrl.trainer.ppo_config",
    "FineGrainedPPOTrainer": "fgrl.trainer.ppo",
    "RankAUC": "fgrl.trainer.reward_metrics",
    "RewardMetrics": "fgrl.trainer.reward_metrics",
    "TeacherReward": "fgrl.trainer.teacher",
    "TokenRewardConfig": "fgrl.trainer.reward_config",
    "TokenRewardTrainer": "fgrl.trainer.reward",
}

__all__ = [
    "FineGrainedPPOConfig",
    "FineGrainedPPOTrainer",
    "RankAUC",
    "RewardMetrics",
    "TeacherReward",
    "TokenRewardConfig",
    "TokenRewardTrainer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fgrl.trainer' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
