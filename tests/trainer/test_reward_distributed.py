"""Two processes take the reward trainer's step, and report the metrics, of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from fgrl.models import TokenRewardModel

WORKER = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from reward_task import config, pairs
from fgrl.cli._training import leave_process_group
from fgrl.models import TokenRewardModel
from fgrl.trainer import TokenRewardTrainer

checkpoint, output, batch_size = sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
rows = pairs(8)
for row in rows[::3]:
    row.original_errors = row.original_edits
options = dict(optim="sgd", learning_rate=0.1, max_grad_norm=0.0, lr_scheduler_type="constant", max_steps=1)
trainer = TokenRewardTrainer(
    TokenRewardModel.from_pretrained(checkpoint),
    config(output, per_device_train_batch_size=batch_size, gradient_accumulation_steps=2, packed="packed" in sys.argv,
           per_device_eval_batch_size=2, **options),
    train_dataset=rows, eval_dataset=pairs(7, seed=1) + rows[:4],
)
trainer.train()
metrics = trainer.evaluate()
trainer.save_model(output)
if trainer.is_world_process_zero():
    with open(output + "/metrics.json", "w") as file:
        json.dump(metrics, file)
del trainer
leave_process_group()
"""


def run_workers(checkpoint: Path, output: Path, processes: int, *flags: str) -> tuple[dict[str, float], Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = []
    for rank in range(processes):
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        arguments = [str(Path(__file__).parent), str(checkpoint), str(output), str(4 // processes), *flags]
        command = [sys.executable, "-W", "ignore", "-c", WORKER, *arguments]
        workers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors[-3000:]
    weights = TokenRewardModel.from_pretrained(output).state_dict()
    return json.loads((output / "metrics.json").read_text()), weights


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("packed",)], ids=["padded", "packed"])
def test_two_processes_take_the_step_and_report_the_metrics_of_one(
    flags: tuple[str, ...], model: TokenRewardModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "start")
    one, one_weights = run_workers(tmp_path / "start", tmp_path / "one", 1, *flags)
    two, two_weights = run_workers(tmp_path / "start", tmp_path / "two", 2, *flags)
    start = TokenRewardModel.from_pretrained(tmp_path / "start").state_dict()
    assert any(not torch.equal(start[name], one_weights[name]) for name in start)
    torch.testing.assert_close(dict(two_weights), dict(one_weights), atol=1e-6, rtol=1e-5)
    assert two["eval_pairs"] == one["eval_pairs"] == 11, "the pairs that fill up the last batch count once"
    for name in ("pair_accuracy", "margin", "edit_auc", "span_auc"):
        assert two[f"eval_{name}"] == pytest.approx(one[f"eval_{name}"], abs=1e-5), name
