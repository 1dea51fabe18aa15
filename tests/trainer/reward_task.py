"""What the reward trainer's tests train on: responses with wrong tokens that can be told by their ids."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from fgrl.data import EncodedPair
from fgrl.trainer import TokenRewardConfig

FIRST_WRONG_TOKEN, VOCAB = 200, 220


def pairs(count: int, seed: int = 0, **flags: Any) -> list[EncodedPair]:
    """Responses in which one or two tokens were replaced by wrong ones, recognisable by their ids."""
    rng = random.Random(seed)
    result = []
    for _ in range(count):
        good = [rng.randrange(3, FIRST_WRONG_TOKEN) for _ in range(rng.randint(4, 12))]
        bad, edits = list(good), [False] * len(good)
        for at in rng.sample(range(len(good)), rng.randint(1, 2)):
            bad[at], edits[at] = rng.randrange(FIRST_WRONG_TOKEN, VOCAB), True
        prompt = [rng.randrange(3, FIRST_WRONG_TOKEN) for _ in range(rng.randint(1, 4))]
        result.append(EncodedPair(prompt, [*bad, 2], [*good, 2], [*edits, False], [*edits, False], **flags))
    return result


def config(folder: Path, **options: Any) -> TokenRewardConfig:
    defaults = {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "logging_steps": 1,
    }
    return TokenRewardConfig(**{**defaults, **options})
