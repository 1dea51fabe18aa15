"""`fgrl train-ppo` end to end on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("yaml")

from fgrl import TokenRewardModel
from fgrl.cli import main


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("the cat", "a dog", "who")))
    return path


def command(prompts: Path, model: Path, out: Path, *extra: str) -> list[str]:
    fixed = ["--cpu", "--quiet", "--max-steps", "2", "--num-ppo-epochs", "1", "--batch-size", "3"]
    places = ["--model", str(model), "--out", str(out), "--max-completion-length", "4"]
    return ["train-ppo", str(prompts), *places, *fixed, *extra]


def test_trains_with_a_reward_model_and_writes_policy_and_metrics(
    prompts: Path, tiny_checkpoint: Path, tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, capsys: Any
) -> None:
    from transformers import AutoModelForCausalLM

    reward = tmp_path / "reward"
    TokenRewardModel.from_backbone(tiny_causal_lm).save_pretrained(reward)
    tiny_tokenizer.save_pretrained(reward)
    out = tmp_path / "out"
    assert main(command(prompts, tiny_checkpoint, out, "--reward-model", str(reward), "--eval", str(prompts))) == 0
    AutoModelForCausalLM.from_pretrained(out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert "eval_reward" in metrics["final"]
    assert "last rollout" in capsys.readouterr().out
    assert main(command(prompts, tiny_checkpoint, out, "--reward-model", str(reward))) == 2  # not empty
    assert "--overwrite" in capsys.readouterr().err


@pytest.fixture
def reward_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A function of a module in the current folder, as an installed script sees it: the folder is not importable."""
    folder = tmp_path / "project"
    folder.mkdir()
    code = "def length(completions, **columns):\n    return [1.0] * len(completions)\n"
    (folder / "my_rewards.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(folder))])
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    return "my_rewards:length"


def test_reward_function_by_name(prompts: Path, tiny_checkpoint: Path, tmp_path: Path, reward_function: str) -> None:
    before = list(sys.path)
    options = ["--reward-function", reward_function, "--set", "vf_coef=1e-1", "--lora-rank", "2"]
    assert main(command(prompts, tiny_checkpoint, tmp_path / "out", *options)) == 0
    history = json.loads((tmp_path / "out" / "metrics.json").read_text())["history"]
    assert history[0]["reward/length"] == 1.0
    assert sys.path == before


def test_gradient_checkpointing(prompts: Path, tiny_checkpoint: Path, tmp_path: Path, reward_function: str) -> None:
    options = ["--reward-function", reward_function, "--gradient-checkpointing"]
    assert main(command(prompts, tiny_checkpoint, tmp_path / "out", *options)) == 0


def test_tokenizer_of_its_own(
    prompts: Path, tiny_checkpoint: Path, tmp_path: Path, reward_function: str, capsys: Any
) -> None:
    tokenizer, out = tmp_path / "tokenizer", tmp_path / "out"
    tokenizer.mkdir()
    for path in tiny_checkpoint.glob("*token*"):
        path.rename(tokenizer / path.name)
    options = ["--reward-function", reward_function]
    assert main(command(prompts, tiny_checkpoint, out, *options)) == 2
    assert f"--model {tiny_checkpoint} cannot be used" in capsys.readouterr().err
    assert main(command(prompts, tiny_checkpoint, out, *options, "--tokenizer", str(tmp_path / "nowhere"))) == 2
    assert f"--tokenizer {tmp_path / 'nowhere'} cannot be used" in capsys.readouterr().err
    assert main(command(prompts, tiny_checkpoint, out, *options, "--tokenizer", str(tokenizer))) == 0
    assert (out / "tokenizer.json").exists()


def test_a_tokenizer_with_more_tokens_than_the_model(
    prompts: Path, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path, reward_function: str, capsys: Any
) -> None:
    import copy

    larger = copy.deepcopy(tiny_tokenizer)
    larger.add_tokens(["<extra>"])
    larger.save_pretrained(tmp_path / "larger")
    options = ["--reward-function", reward_function, "--tokenizer", str(tmp_path / "larger")]
    assert main(command(prompts, tiny_checkpoint, tmp_path / "out", *options)) == 2
    assert f"--model {tiny_checkpoint} cannot be used: the tokenizer has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the reward is missing"),
        (["--reward-function", "nowhere"], "MODULE:FUNCTION"),
        (["--reward-function", "nowhere:f"], "cannot be loaded"),
        (["--reward-function", "math:sqrt", "--set", "nonsense=1"], "--set is 'nonsense=1'"),
        (["--reward-function", "math:sqrt", "--set", "vf_coef=high"], "--set is 'vf_coef=high'; vf_coef must be float"),
        (["--reward-function", "math:sqrt", "--gamma", "2"], "gamma"),
        (["--reward-function", "math:sqrt", "--resume"], "found no checkpoint"),
    ],
    ids=lambda value: " ".join(value) or "none" if isinstance(value, list) else "",
)
def test_usage_errors_exit_2(
    prompts: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Any, options: list[str], message: str
) -> None:
    assert main(command(prompts, tiny_checkpoint, tmp_path / "out", *options)) == 2
    assert message in capsys.readouterr().err


def test_a_reward_model_of_another_vocabulary_fails(
    prompts: Path, tiny_checkpoint: Path, tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, capsys: Any
) -> None:
    import copy

    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["<extra>"])
    reward = tmp_path / "reward"
    tiny_causal_lm.resize_token_embeddings(len(other))
    TokenRewardModel.from_backbone(tiny_causal_lm).save_pretrained(reward)
    other.save_pretrained(reward)
    assert main(command(prompts, tiny_checkpoint, tmp_path / "out", "--reward-model", str(reward))) == 2
    assert "is not the policy's" in capsys.readouterr().err
