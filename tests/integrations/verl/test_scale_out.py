"""verl's own `main_ppo` on Ray: two FSDP2 workers over gloo, a critic and PPO on the CPU, with and without fgrl.

Everything is verl's but the platform and the rollout, which come through its extension points. The head is not tied to
the embedding, so that FSDP2 shards it on its own. SGD, since Adam makes of the sign of a gradient that is almost 0 a
whole step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

FILES = Path(__file__).parent / "scale_out"
STEPS = 3
WORDS = ["hello", "abc", "see", "tree", "good day", "x y z", "bee", "end"]
OPTIONS = Template("""
    data.train_files=$inputs/train.parquet data.val_files=$inputs/train.parquet
    data.train_batch_size=8 data.max_prompt_length=64 data.max_response_length=16
    data.return_raw_chat=True data.shuffle=False data.dataloader_num_workers=0
    actor_rollout_ref.model.path=$inputs/model critic.model.path=$inputs/model
    actor_rollout_ref.model.use_remove_padding=False critic.model.use_remove_padding=False
    actor_rollout_ref.model.enable_gradient_checkpointing=False critic.model.enable_gradient_checkpointing=False
    +actor_rollout_ref.model.override_config.attn_implementation=sdpa
    +critic.model.override_config.attn_implementation=sdpa
    actor_rollout_ref.actor.ppo_mini_batch_size=8 critic.ppo_mini_batch_size=8
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2 critic.ppo_micro_batch_size_per_gpu=2
    actor_rollout_ref.actor.use_dynamic_bsz=False critic.use_dynamic_bsz=False
    actor_rollout_ref.actor.strategy=fsdp2 critic.strategy=fsdp2
    actor_rollout_ref.actor.optim.optimizer=SGD critic.optim.optimizer=SGD
    actor_rollout_ref.actor.optim.lr=0.1 critic.optim.lr=0.1
    actor_rollout_ref.actor.fsdp_config.model_dtype=fp32 critic.fsdp.model_dtype=fp32
    +actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}
    +critic.fsdp.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}
    actor_rollout_ref.actor.use_torch_compile=False actor_rollout_ref.actor.fsdp_config.use_torch_compile=False
    actor_rollout_ref.rollout.name=hf actor_rollout_ref.rollout.tensor_model_parallel_size=1
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=False
    actor_rollout_ref.rollout.n=1 actor_rollout_ref.rollout.val_kwargs.n=1 actor_rollout_ref.rollout.agent.num_workers=1
    algorithm.adv_estimator=gae algorithm.gamma=0.99 algorithm.lam=0.95
    reward.custom_reward_function.path=$files/rewards.py reward.num_workers=1
    trainer.n_gpus_per_node=2 trainer.nnodes=1 trainer.device=cpu trainer.logger=[console,file]
    trainer.total_training_steps=3 trainer.total_epochs=1
    trainer.val_before_train=False trainer.test_freq=-1 trainer.save_freq=-1
    ray_kwargs.ray_init.num_cpus=32 +ray_kwargs.ray_init.num_gpus=2 +ray_kwargs.ray_init.include_dashboard=False
    transfer_queue.backend.SimpleStorage.num_data_storage_units=1
""")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A tiny model and prompts."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    rows = [
        {
            "data_source": "toy",
            "prompt": [{"role": "user", "content": word}],
            "reward_model": {"style": "rule", "ground_truth": "e"},
            "extra_info": {"index": index},
        }
        for index, word in enumerate(WORDS * STEPS)
    ]
    pd.DataFrame(rows).to_parquet(folder / "train.parquet")
    return folder


def run(inputs: Path, folder: Path, *overrides: str, modules: str = "cpu_platform") -> dict[str, list[float]]:
    """Each metric of verl, step by step; the last weights lie in `folder`."""
    folder.mkdir()
    arguments = [*OPTIONS.safe_substitute(inputs=inputs, files=FILES).split(), *overrides]
    environment = {
        **os.environ,
        "PYTHONPATH": str(FILES),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": modules,
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "SCALE_OUT_FOLDER": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
    command = [sys.executable, "-W", "ignore", "-m", "verl.trainer.main_ppo", *arguments]
    with (folder / "log").open("w") as log:
        code = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False).returncode
    assert code == 0, (folder / "log").read_text()[-6000:]
    metrics: dict[str, list[float]] = defaultdict(list)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        for name, value in json.loads(line)["data"].items():
            metrics[name].append(value)
    assert len(metrics["actor/pg_loss"]) == STEPS
    return metrics


FGRL = [
    "actor_rollout_ref.model.external_lib=fgrl.integrations.verl",
    "critic.model.external_lib=fgrl.integrations.verl",
    "actor_rollout_ref.actor.policy_loss.loss_mode=fgrl",
    "actor_rollout_ref.model.use_fused_kernels=True",
    "actor_rollout_ref.model.fused_kernel_options.impl_backend=torch",
]


def calls(folder: Path) -> dict[str, set[str]]:
    """The processes in which each op was called."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in (folder / "calls").read_text().splitlines():
        op, process = line.split()
        found[op].add(process)
    return found


def test_three_steps_are_those_of_verl(inputs: Path, tmp_path: Path) -> None:
    theirs = run(inputs, tmp_path / "theirs")
    mine = run(inputs, tmp_path / "fgrl", *FGRL, modules="cpu_platform,recorder")
    processes = calls(tmp_path / "fgrl")
    assert {name: len(where) for name, where in processes.items()} == {
        "gae": 1,  # the driver
        "whiten": 1,
        "linear_logprobs": 2,
        "ppo_loss": 2,
        "value_loss": 2,
    }
    compared = [
        name
        for name in theirs
        if name.startswith(("actor/", "critic/", "response_length/", "training/"))
        and not any(part in name for part in ("perf/", "mfu", "memory"))
    ]
    assert {"actor/pg_loss", "actor/grad_norm", "critic/vf_loss", "critic/grad_norm"} <= set(compared)
    for name in compared:
        assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    before = LlamaForCausalLM.from_pretrained(inputs / "model").state_dict()
    after, expected = (torch.load(tmp_path / name / "weights.pt") for name in ("fgrl", "theirs"))
    assert set(after) == set(expected)
    moved = max((weight - before[name]).abs().max() for name, weight in expected.items())
    apart = max((weight - expected[name]).abs().max() for name, weight in after.items())
    assert moved > 1e-3
    assert apart < 1e-3 * moved


def test_three_steps_with_token_rewards(inputs: Path, tmp_path: Path) -> None:
    """The rewards that reach the advantages are those of the function, each at its token."""
    metrics = run(
        inputs,
        tmp_path / "dense",
        *FGRL,
        "reward.custom_reward_function.name=token_rewards",
        "reward.reward_manager.source=importlib",
        "reward.reward_manager.name=DenseRewardManager",
        "reward.reward_manager.module.path=pkg://fgrl.integrations.verl.rewards",
        modules="cpu_platform,recorder",
    )
    rewards, mask = torch.load(tmp_path / "dense" / "rewards.pt")
    valid = mask.bool()
    assert valid.sum() > 8 * 8
    assert set(rewards[valid].tolist()) == {-1.5, -0.5, 0.5, 1.5, 2.5}
    assert not rewards[~valid].any()
    assert metrics["critic/score/mean"][-1] == pytest.approx(rewards.sum(1).mean().item(), abs=1e-5)
    assert all(value > 0 for value in metrics["critic/grad_norm"] + metrics["actor/grad_norm"])
