"""One of two processes: the advantages of its half of `ROLLOUT`, written to `RANK.json` in the folder given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from trl_task import PROMPTS, ROLLOUT, by_token, config, outcome

from fgrl.integrations.trl import FineGrainedGRPOTrainer

checkpoint, folder = sys.argv[1], Path(sys.argv[2])
rank = int(os.environ["RANK"])


def half(prompts: Any, trainer: Any) -> dict[str, Any]:
    mine = {name: rows[4 * rank : 4 * rank + 4] for name, rows in ROLLOUT.items()}
    return {**mine, "logprobs": [[-1.0] * len(ids) for ids in mine["completion_ids"]]}


torch.set_num_threads(1)
trainer = FineGrainedGRPOTrainer(
    checkpoint,
    reward_funcs=[by_token, outcome],
    args=config(folder, num_generations=8, per_device_train_batch_size=4),
    train_dataset=PROMPTS,
    processing_class=AutoTokenizer.from_pretrained(checkpoint),
    rollout_func=half,
)
trainer.model.train()
output = trainer._generate_and_score_completions([{"prompt": "a"}] * 4)
content = {
    "advantages": output["advantages"].tolist(),
    "mask": (output["completion_mask"] * output["tool_mask"]).tolist(),
    "reward": trainer._metrics["train"]["reward"][-1],
    "logged": list(trainer._logs["advantages"]),
}
(folder / f"{rank}.json").write_text(json.dumps(content))
torch.distributed.destroy_process_group()
