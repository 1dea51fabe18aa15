"""Two processes take the reward trainer's step, and report the metrics, of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_script

pytest.importorskip("transformers")

from reward_task import config

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
options = dict(optim="sgd", learning_rate=0.1, max_grad_norm=0.0, lr_scheduler_type="constant", max_steps=1,
               per_device_train_batch_size=batch_size)
options.update(json.loads(sys.argv[5]))
trainer = TokenRewardTrainer(
    TokenRewardModel.from_pretrained(checkpoint),
    config(output, gradient_accumulation_steps=2, per_device_eval_batch_size=2, **options),
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


def run_workers(checkpoint: Path, output: Path, processes: int, **options: Any) -> tuple[dict[str, float], Any]:
    run_script(
        WORKER, Path(__file__).parent, checkpoint, output, 4 // processes, json.dumps(options), processes=processes
    )
    weights = TokenRewardModel.from_pretrained(output).state_dict()
    return json.loads((output / "metrics.json").read_text()), weights


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packed": True},
        {"accelerator_config": {"split_batches": True}, "per_device_train_batch_size": 4},
        {
            "accelerator_config": {
                "use_seedable_sampler": False,
                "non_blocking": True,
                "gradient_accumulation_kwargs": {"sync_each_batch": True},
            },
            "average_tokens_across_devices": False,
            "eval_accumulation_steps": 1,
            "eval_use_gather_object": True,
            "train_sampling_strategy": "sequential",
        },
    ],
    ids=["padded", "packed", "split batches", "other options"],
)
def test_two_processes_take_the_step_and_report_the_metrics_of_one(
    options: dict[str, Any], model: TokenRewardModel, tmp_path: Path
) -> None:
    """An option that changes the order of the pairs is set for one process too: the step holds all eight pairs."""
    model.save_pretrained(tmp_path / "start")
    one, one_weights = run_workers(tmp_path / "start", tmp_path / "one", 1)
    two, two_weights = run_workers(tmp_path / "start", tmp_path / "two", 2, **options)
    start = TokenRewardModel.from_pretrained(tmp_path / "start").state_dict()
    assert any(not torch.equal(start[name], one_weights[name]) for name in start)
    torch.testing.assert_close(dict(two_weights), dict(one_weights), atol=1e-6, rtol=1e-5)
    assert two["eval_pairs"] == one["eval_pairs"] == 11, "the pairs that fill up the last batch count once"
    for name in ("loss", "pair_accuracy", "margin", "edit_auc", "span_auc"):
        assert two[f"eval_{name}"] == pytest.approx(one[f"eval_{name}"], abs=1e-5), name


REFUSED = """
import sys
sys.path.insert(0, sys.argv[1])
from reward_task import config
try:
    config(sys.argv[2], accelerator_config={"even_batches": False})
except ValueError as error:
    assert "even_batches is False; it must be True" in str(error), error
else:
    raise AssertionError("even_batches=False was taken")
from accelerate import PartialState
PartialState().destroy_process_group()
"""


@pytest.mark.slow
def test_uneven_batches_are_refused_where_processes_would_wait_for_each_other(tmp_path: Path) -> None:
    run_script(REFUSED, Path(__file__).parent, tmp_path, processes=2)
    config(tmp_path, accelerator_config={"even_batches": False})  # one process waits for nobody
