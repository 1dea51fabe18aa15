"""The whole demo, small: every stage runs, every file is there, and the seed decides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("codespell_lib")

from fgrl.cli import main
from fgrl.demo.config import DemoConfig
from fgrl.demo.pipeline import run_demo
from fgrl.demo.stages import KLController

CONFIG = DemoConfig(seed=5, workers=1).quick()
CONFIG = replace(CONFIG, pretrain=replace(CONFIG.pretrain, steps=12))


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on the clock or on the number of processes."""
    return {key: report[key] for key in ("reward_model", "policy", "human", "win_rate", "ppo", "pretraining")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return run_demo(CONFIG, folder)


@pytest.mark.slow
def test_every_file_is_there_and_loads_without_fgrl(report: dict[str, Any], folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

    for name in ("policy-start", "policy-sequence", "policy-fine-grained"):
        AutoModelForCausalLM.from_pretrained(folder / name)
        AutoTokenizer.from_pretrained(folder / name)
    for name in ("reward-model-token", "reward-model-sequence"):
        assert AutoModelForTokenClassification.from_pretrained(folder / name).config.num_labels == 1
    assert figures(json.loads((folder / "report.json").read_text("utf-8"))) == json.loads(json.dumps(figures(report)))
    assert "<svg" in (folder / "report.html").read_text("utf-8")
    assert len((folder / "edits.jsonl").read_text("utf-8").splitlines()) == 64


@pytest.mark.slow
def test_the_two_policies_start_alike_and_take_the_same_number_of_steps(report: dict[str, Any]) -> None:
    token, sequence = report["ppo"]["fine_grained"], report["ppo"]["sequence"]
    assert token["steps"] == sequence["steps"] > 0
    assert token["errors_per_100_words"][0] == sequence["errors_per_100_words"][0]
    assert token["reward"][0] != sequence["reward"][0]


@pytest.mark.slow
def test_processes_change_nothing_and_the_seed_changes_the_figures(report: dict[str, Any], tmp_path: Path) -> None:
    parallel = run_demo(replace(CONFIG, workers=2), tmp_path / "parallel")
    assert figures(parallel) == figures(report)
    other = run_demo(replace(CONFIG, seed=6), tmp_path / "other")
    assert figures(other) != figures(report)


def test_a_bad_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--workers", "0"]) == 2
    assert "--workers" in capsys.readouterr().err


def test_the_kl_controller_moves_the_coefficient_towards_its_target() -> None:
    controller, args = KLController(10.0), SimpleNamespace(reward_kl_coef=1.0)
    moved = []
    for kl in (0.0, 9.9, 10.0, 10.5, 30.0):
        before = args.reward_kl_coef
        controller.on_log(args, None, None, logs={"kl_per_sequence": kl})
        moved.append(args.reward_kl_coef / before)
    assert moved == pytest.approx([0.95, 0.99, 1.0, 1.05, 1.2])
    controller.on_log(args, None, None, logs={"loss": 1.0})  # not the log of a rollout
    assert len(controller.coefficients) == 5
