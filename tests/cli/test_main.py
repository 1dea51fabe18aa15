"""The command line itself: exit codes, configuration files, `fgrl doctor`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fgrl
from fgrl.cli import _COMMANDS, main
from fgrl.cli._progress import progress


def run(*arguments: str) -> int:
    """Exit code of `fgrl ARGUMENTS`, argparse's own exits included."""
    try:
        return main(list(arguments))
    except SystemExit as exit:
        return int(exit.code or 0)


@pytest.mark.parametrize("command", [None, *_COMMANDS])
def test_help(command: str | None, capsys: Any) -> None:
    assert run(*([command] if command else []), "--help") == 0
    shown = capsys.readouterr().out
    if command is None:
        assert all(name in shown for name in _COMMANDS)
    else:
        assert "--config" in shown


def test_version(capsys: Any) -> None:
    assert run("--version") == 0
    assert fgrl.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["doctor", "--no-such-option"]], ids=str)
def test_a_command_line_that_cannot_be_used_exits_2(arguments: list[str]) -> None:
    assert run(*arguments) == 2


def test_doctor_names_the_backend_of_every_op_and_why(capsys: Any) -> None:
    assert run("doctor", "--json", "--device", "cpu") == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["ops"]) == set(fgrl.ops.__all__) - {name for name in fgrl.ops.__all__ if name[0].isupper()}
    assert all(choice["backend"] in ("cpp", "triton", "reference") for choice in report["ops"].values())
    assert all(choice["reason"] for choice in report["ops"].values())


def test_doctor_refuses_an_unknown_device(capsys: Any) -> None:
    assert run("doctor", "--device", "abacus") == 2
    assert "device is 'abacus'" in capsys.readouterr().err


def test_config_file_gives_defaults_that_flags_override(tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "doctor.yaml"
    config.write_text("json: true\ndevice: meta\n")
    assert run("doctor", "--config", str(config)) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "meta"
    assert run("doctor", f"--config={config}", "--device", "cpu") == 0
    assert json.loads(capsys.readouterr().out)["device"] == "cpu"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no-such-option: 1\n", "'no-such-option' is not an option of fgrl doctor"),
        ("- a\n- list\n", "must be a mapping"),
        ("json: maybe\n", "must be true or false"),
        ("json: [unclosed\n", "cannot be read"),
    ],
    ids=["unknown", "list", "type", "syntax"],
)
def test_a_bad_config_file_exits_2_with_one_sentence(tmp_path: Path, capsys: Any, content: str, message: str) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(content)
    assert run("doctor", "--config", str(config)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_a_missing_config_file_exits_2(capsys: Any) -> None:
    assert run("doctor", "--config", "no-such-file.yaml") == 2
    assert "no-such-file.yaml" in capsys.readouterr().err


def test_config_file_supplies_required_and_positional_arguments(tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "ppo.yaml"
    config.write_text(f"source: nowhere.jsonl\nmodel: {tmp_path}\nout: {tmp_path / 'out'}\n")
    assert run("train-ppo", "--config", str(config)) == 2
    assert "the reward is missing" in capsys.readouterr().err  # past argparse, into the command's own checks


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., argparse.Namespace]:
    """What `fgrl train-ppo` parses from the text of a configuration file and flags."""

    def parse(content: str, *flags: str) -> argparse.Namespace:
        config = tmp_path / "run.yaml"
        config.write_text(f"source: s\nmodel: m\nout: o\n{content}")
        captured: list[argparse.Namespace] = []
        monkeypatch.setattr("fgrl.cli.train_ppo.run", lambda args: captured.append(args) or 0)
        assert run("train-ppo", "--config", str(config), *flags) == 0
        return captured[0]

    return parse


@pytest.mark.parametrize("content", ["reward-model: some/model", "reward-model: [some/model]"], ids=["scalar", "list"])
def test_config_file_names_one_value_of_a_repeatable_option(parse: Any, content: str) -> None:
    assert parse(content).reward_model == ["some/model"]
    assert parse(content, "--reward-model", "a", "--reward-model", "b").reward_model == ["a", "b"]


def test_flags_replace_the_list_of_the_file_and_the_rest_stays(parse: Any) -> None:
    args = parse("set: [vf_coef=1, gamma=0.5]\ncolumn: [prompt=a, x=b]\n", "--set", "lam=0.5")
    assert args.set == ["lam=0.5"]
    assert args.column == ["prompt=a", "x=b"]


def test_values_of_the_file_are_what_the_flags_would_be(parse: Any) -> None:
    args = parse("model: 7\nlearning-rate: 1e-3\nseed: 3\ncpu: true\n")
    assert (args.model, args.learning_rate, args.seed, args.cpu) == ("7", 1e-3, 3, True)


@pytest.mark.parametrize("line", ["seed: [1, 2]", "seed: one", "model: [a]", "model: {a: b}", "set: [{vf_coef: 1}]"])
def test_values_of_the_file_that_no_flag_could_have(line: str, tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(f"source: s\nmodel: m\nout: o\n{line}\n")
    assert run("train-ppo", "--config", str(config)) == 2
    assert line.partition(":")[0] in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--vers"], ["doctor", "--conf", "x.yaml"], ["doctor", "--js"]], ids=" ".join)
def test_flags_are_taken_in_full_only(arguments: list[str]) -> None:
    assert run(*arguments) == 2


def test_progress_yields_everything_and_is_silent_off_a_terminal(capsys: Any) -> None:
    assert list(progress(range(5), desc="x")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_progress_draws_on_a_terminal(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert list(progress(iter(range(3)), total=3, desc="rows", unit="row")) == [0, 1, 2]
    assert "3/3 row" in capsys.readouterr().err
