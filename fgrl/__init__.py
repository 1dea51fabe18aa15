"""fgrl: fused token-level RL ops, and a thin trainer that aligns language models from minimal edits.

`import fgrl` needs torch only. Names that need more (models, trainers) are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fgrl import ops, reference
    from fgrl.alignment import EditAlignment, EditOp
    from fgrl.backend import use_backend
    from fgrl.models import TokenRewardHead, TokenRewardModel, ValueModel
    from fgrl.ops import PPOLossConfig
    from fgrl.ops._values import checks
    from fgrl.ops.align_edits import align_edits
    from fgrl.preference import extrapolate
    from fgrl.trainer import (
        FineGrainedPPOConfig,
        FineGrainedPPOTrainer,
        TeacherReward,
        TokenRewardConfig,
        TokenRewardTrainer,
    )

_HOMES = {
    "align_edits": "fgrl.ops",
    "PPOLossConfig": "fgrl.ops",
    "EditAlignment": "fgrl.alignment",
    "EditOp": "fgrl.alignment",
    "extrapolate": "fgrl.preference",
    "use_backend": "fgrl.backend",
    "checks": "fgrl.ops._values",
    "TokenRewardHead": "fgrl.models",
    "TokenRewardModel": "fgrl.models",
    "ValueModel": "fgrl.models",
    "TokenRewardTrainer": "fgrl.trainer",
    "TokenRewardConfig": "fgrl.trainer",
    "TeacherReward": "fgrl.trainer",
    "FineGrainedPPOTrainer": "fgrl.trainer",
    "FineGrainedPPOConfig": "fgrl.trainer",
}
_SUBMODULES = ("ops", "reference", "models", "data", "trainer", "preference", "kernels")

__all__ = [
    "EditAlignment",
    "EditOp",
    "FineGrainedPPOConfig",
    "FineGrainedPPOTrainer",
    "PPOLossConfig",
    "TeacherReward",
    "TokenRewardConfig",
    "TokenRewardHead",
    "TokenRewardModel",
    "TokenRewardTrainer",
    "ValueModel",
    "__version__",
    "align_edits",
    "checks",
    "extrapolate",
    "ops",
    "reference",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _SUBMODULES:
        value = import_module(f"fgrl.{name}")
    else:
        raise AttributeError(f"module 'fgrl' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_SUBMODULES})
