"""Options of the trainer that were renamed, and those it passes on to the loss."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import fgrl
from fgrl.cli import train_ppo
from fgrl.cli._training import build_config
from fgrl.ops import PPOLossConfig

RENAMED: dict[str, tuple[str, Any]] = {
    "kl_coef": ("reward_kl_coef", 0.3),
    "kl_estimator": ("reward_kl_estimator", "k3"),
    "cliprange_value": ("value_clip", None),
}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_sets_the_new_one_with_a_warning(old: str, tmp_path: Path) -> None:
    new, value = RENAMED[old]
    with pytest.warns(DeprecationWarning, match=f"^{old} is deprecated; use {new}$"):
        config = fgrl.FineGrainedPPOConfig(str(tmp_path), report_to=[], **{old: value})
    assert getattr(config, new) == value


def test_the_new_names_warn_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        config = fgrl.FineGrainedPPOConfig(str(tmp_path), report_to=[], **dict(RENAMED.values()))
    assert {new: getattr(config, new) for new, _ in RENAMED.values()} == dict(RENAMED.values())


def test_the_loss_gets_its_options(tmp_path: Path) -> None:
    options: dict[str, Any] = {"loss": "sapo", "tau_positive": 2.0, "tau_negative": 3.0, "clip_high": 0.3}
    config = fgrl.FineGrainedPPOConfig(str(tmp_path), report_to=[], loss_kl_coef=0.2, **options)
    assert config.loss_config == PPOLossConfig(kl_coef=0.2, **options)
    with pytest.raises(ValueError, match="loss is 'ppo'; it must be one of clip, gspo"):
        fgrl.FineGrainedPPOConfig(str(tmp_path), report_to=[], loss="ppo")


def test_the_command_takes_the_loss_and_the_old_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    train_ppo.add_arguments(parser)
    flags = ["--out", str(tmp_path), "--model", "m", "--loss", "gspo", "--kl-coef", "0.3", "--kl-estimator", "k3"]
    args = parser.parse_args(["prompts.jsonl", *flags])
    args.quiet = True  # of the command itself
    assert capsys.readouterr().err.splitlines() == [
        "fgrl: --kl-coef is deprecated; use --reward-kl-coef",
        "fgrl: --kl-estimator is deprecated; use --reward-kl-estimator",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        config = build_config(fgrl.FineGrainedPPOConfig, args, {"report_to": []})
    assert (config.loss, config.reward_kl_coef, config.reward_kl_estimator) == ("gspo", 0.3, "k3")
    assert "--kl-coef" not in parser.format_help().replace("--reward-kl-coef", "")
