"""What the demo reports: the content of `report.json` and the table printed last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgrl.data.output import write_text
from fgrl.demo.evaluate import HUMAN, Judged, warnings, win_rate

SHOWN_SAMPLES = 6
_WINS = (
    ("fine_grained_vs_start", "fine_grained", "start"),
    ("sequence_vs_start", "sequence", "start"),
    ("fine_grained_vs_sequence", "fine_grained", "sequence"),
)
_COLUMNS = (
    ("errors_per_100_words", "wrong/100 words", "{:.2f}"),
    ("perplexity", "perplexity", "{:.1f}"),
    ("perplexity_corrected", "corrected", "{:.1f}"),
    ("distinct2", "distinct-2", "{:.3f}"),
    ("words", "words", "{:.1f}"),
    ("tokens", "tokens", "{:.1f}"),
    ("kl", "KL", "{:.1f}"),
)


def build_report(
    *,
    config: Mapping[str, Any],
    corpus: Mapping[str, Any],
    pretraining: Mapping[str, Any],
    pairs: int,
    rewards: Mapping[str, Mapping[str, Any]],
    ppo: Mapping[str, Any],
    judged: Mapping[str, Judged],
    versions: Mapping[str, str],
    stages: Mapping[str, float],
    seconds: float,
) -> dict[str, Any]:
    """The content of `report.json`, in JSON types."""
    policies = {name: judged[name].metrics for name in judged if name != HUMAN}
    return {
        "seed": config["seed"],
        "seconds": seconds,
        "seconds_per_stage": dict(stages),
        "pairs": pairs,
        "reward_model": {level: dict(metrics) for level, metrics in rewards.items()},
        "policy": policies,
        "human": judged[HUMAN].metrics,
        "win_rate": {
            key: win_rate(judged[ours].error_rates, judged[theirs].error_rates) for key, ours, theirs in _WINS
        },
        "prompts": len(judged["start"].responses),
        "warnings": warnings(policies),
        "corpus": dict(corpus),
        "pretraining": dict(pretraining),
        "ppo": dict(ppo),
        "config": dict(config),
        "versions": dict(versions),
    }


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write `report.json`."""
    write_text(path, json.dumps(report, indent=2) + "\n")


def policy_rows(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of policies, as text."""
    header = ["", *(title for _, title, _ in _COLUMNS)]
    rows = [(HUMAN, report["human"]), *report["policy"].items()]
    return header, [
        [name.replace("_", "-"), *(form.format(metrics[key]) for key, _, form in _COLUMNS)] for name, metrics in rows
    ]


def win_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`(who against whom, win rate)`."""
    return [(key.replace("_vs_", " vs ").replace("_", "-"), f"{rate:.3f}") for key, rate in report["win_rate"].items()]


def format_table(report: Mapping[str, Any]) -> str:
    """The short table that the demo prints last."""
    header, rows = policy_rows(report)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        return "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])

    token, sequence = report["reward_model"]["token"], report["reward_model"]["sequence"]
    lines = [
        line(header),
        *map(line, rows),
        "",
        "win rate  " + "   ".join(f"{name} {rate}" for name, rate in win_rows(report)),
        f"reward model  token: pair accuracy {token['pair_accuracy']:.3f}, edit AUC {token['edit_auc']:.3f}"
        f"   sequence: pair accuracy {sequence['pair_accuracy']:.3f}",
        *(f"warning: {sentence}" for sentence in report["warnings"]),
        f"{report['prompts']} held-out prompts, {report['pairs']} edited pairs, seed {report['seed']}, "
        f"{report['seconds']:.0f} s",
    ]
    return "\n".join(lines)
