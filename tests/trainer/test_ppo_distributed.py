"""Two processes take the step that one process takes on the same prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import run_script

pytest.importorskip("transformers")

WORKER = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from fgrl import FineGrainedPPOConfig, FineGrainedPPOTrainer
from fgrl.cli._training import leave_process_group
from fgrl.trainer.reward_sources import reward_sources

checkpoint, output, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)

def by_id(completion_ids, **columns):
    return [[(token % 7) / 7 for token in ids] for ids in completion_ids]

args = FineGrainedPPOConfig(
    output_dir=output, per_device_train_batch_size=batch_size, num_ppo_epochs=1, max_steps=1, optim="sgd",
    learning_rate=1.0, max_grad_norm=0.0, lr_scheduler_type="constant", max_completion_length=6, top_k=1,
    report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
)
prompts = [{"prompt": text} for text in ("the cat", "a dog ran", "who", "the sky is", "red", "on a mat")]
trainer = FineGrainedPPOTrainer(
    AutoModelForCausalLM.from_pretrained(checkpoint), reward_model=by_id, args=args,
    processing_class=AutoTokenizer.from_pretrained(checkpoint), train_dataset=prompts,
)
trainer.train()
trainer.save_model(output)
rank = trainer.accelerator.process_index
if rank == 0:
    torch.save([entry for entry in trainer.state.log_history if "reward" in entry], output + "/history.pt")

# With all tokens to choose from, each process samples with random numbers of its own, and all report the same means.
def length_of_text(completions, **columns):
    seen.extend(completions)
    return [float(len(text)) for text in completions]

seen = []
trainer.args.top_k = 0
trainer._maker.sources = reward_sources(length_of_text, None)
metrics = trainer.evaluate([{"prompt": "the cat"}] * 4)
torch.save({"reward": metrics["eval_reward"], "seen": seen}, f"{output}/evaluation-{rank}.pt")
del trainer
leave_process_group()
"""


def run(checkpoint: Path, output: Path, processes: int) -> tuple[torch.Tensor, dict[str, float]]:
    from transformers import AutoModelForCausalLM

    run_script(WORKER, checkpoint, output, 6 // processes, processes=processes)
    policy = AutoModelForCausalLM.from_pretrained(output)
    weights = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
    return weights, torch.load(output / "history.pt", weights_only=True)[0]


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    one, one_log = run(tiny_checkpoint, tmp_path / "one", 1)
    two, two_log = run(tiny_checkpoint, tmp_path / "two", 2)
    from transformers import AutoModelForCausalLM

    initial = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    start = torch.cat([parameter.detach().flatten() for parameter in initial.parameters()])
    assert (one - start).norm() > 1e-3
    assert (one - two).norm() < 1e-4 * (one - start).norm()
    evaluations = [torch.load(tmp_path / "two" / f"evaluation-{rank}.pt", weights_only=True) for rank in range(2)]
    assert len(evaluations[0]["seen"]) == len(evaluations[1]["seen"]) == 2
    assert evaluations[0]["seen"] != evaluations[1]["seen"]
    lengths = [len(text) for evaluation in evaluations for text in evaluation["seen"]]
    assert evaluations[0]["reward"] == evaluations[1]["reward"] == pytest.approx(sum(lengths) / 4)
    for name in ("loss", "reward", "policy_loss", "value_loss", "completion_length"):
        assert one_log[name] == pytest.approx(two_log[name], abs=1e-4), name
