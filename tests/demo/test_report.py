"""The report: its keys, its arithmetic, and no text that is not escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from fgrl.demo.evaluate import HUMAN, Judged, distinct2, perplexity, warnings, win_rate
from fgrl.demo.page import render
from fgrl.demo.report import build_report, format_table, write_json
from fgrl.demo.samples import Sample, ScoredText
from fgrl.demo.svg import line_chart, ticks

NASTY = "<script>alert('&\"')</script>"


def metrics(**changes: float) -> dict[str, float]:
    values = {
        "errors_per_100_words": 20.0,
        "perplexity": 100.0,
        "perplexity_corrected": 80.0,
        "distinct2": 0.8,
        "words": 20.0,
        "tokens": 28.0,
        "kl": 0.0,
    }
    return {**values, **changes}


@pytest.fixture
def report() -> dict[str, Any]:
    judged = {
        "start": Judged(metrics(), ["a", "b"], [0.2, 0.3]),
        "sequence": Judged(metrics(errors_per_100_words=8.0), ["a", "b"], [0.1, 0.0]),
        "fine_grained": Judged(metrics(errors_per_100_words=2.0), ["a", "b"], [0.1, 0.1]),
        HUMAN: Judged(metrics(errors_per_100_words=0.0), ["a", "b"], [0.0, 0.0]),
    }
    reward = {"pair_accuracy": 0.9, "edit_auc": 0.8, "curve": [(5, 0.6), (10, 0.5)]}
    run = {"errors_per_100_words": [20.0, 8.0], "kl_per_response": [0.0, 3.0]}
    return build_report(
        config={
            "seed": 3,
            "text": {"misspelled_share": 0.2},
            "pretrain": {"steps": 20},
            "ppo": {"kl_target": 10.0, "fine_grained_lam": 0.0, "sequence_lam": 0.95},
        },
        corpus=dict.fromkeys(("training_words", "training_topics", "heldout_words", "heldout_topics", "lexicon"), 7),
        pretraining={"start": {"loss": [5.0, 4.0]}, "clean_prose_model": {"loss": [5.0, 3.0]}},
        pairs=12,
        rewards={"token": reward, "sequence": reward},
        ppo={"fine_grained": run, "sequence": run},
        judged=judged,
        versions={"python": NASTY},
        stages={"PPO": 1.0},
        seconds=2.5,
    )


def test_the_keys_others_rely_on(report: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", report)
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (read["seed"], read["seconds"], read["pairs"]) == (3, 2.5, 12)
    assert {"pair_accuracy", "edit_auc"} <= set(read["reward_model"]["token"])
    assert "pair_accuracy" in read["reward_model"]["sequence"]
    assert set(read["policy"]) == {"start", "sequence", "fine_grained"}
    assert all({"errors_per_100_words", "perplexity"} <= set(policy) for policy in read["policy"].values())
    assert read["win_rate"] == {
        "fine_grained_vs_start": 1.0,
        "sequence_vs_start": 1.0,
        "fine_grained_vs_sequence": 0.25,
    }


def test_the_table_names_every_policy(report: dict[str, Any]) -> None:
    table = format_table(report)
    assert all(name in table for name in ("human", "start", "sequence", "fine-grained", "seed 3"))
    assert "0.250" in table


def test_the_page_escapes_text_and_loads_nothing(report: dict[str, Any]) -> None:
    scored = ScoredText("start", [NASTY, " ok"], [-1.0, 0.5], [True, False], NASTY)
    page = render({**report, "warnings": [NASTY]}, [Sample(NASTY, [scored])])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5  # a version, a warning, the prompt, the token and the correction
    assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "").replace("http-equiv", "")
    assert page.count("<svg") == page.count("</svg>") == 4
    assert page.count('class="t wrong"') == 1
    assert page.rstrip().endswith("</html>")


def test_win_rate_counts_a_tie_half() -> None:
    assert win_rate([0.0, 0.1, 0.3, 0.2], [0.1, 0.1, 0.2, 0.2]) == 0.5
    assert win_rate([0.0], [1.0]) == 1.0


def test_distinct2_and_perplexity() -> None:
    assert distinct2(["a b a b", "a b"]) == 0.5  # (a b) (b a) (a b) (a b)
    assert distinct2(["a"]) == 0.0
    assert perplexity([(0.0, 2), (0.0, 1)]) == 1.0
    assert perplexity([(1.0, 1), (3.0, 1)]) == pytest.approx(7.389, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"perplexity": 131.0}, "perplexity is 1.31"),
        ({"perplexity_corrected": 160.0}, "corrected text is 2.00"),
        ({"distinct2": 0.4}, "repeats itself"),
        ({"tokens": 14.0}, "0.50 times as long"),
    ],
    ids=["perplexity", "corrected", "distinct-2", "length"],
)
def test_degenerate_text_is_called_so(change: dict[str, float], complaint: str) -> None:
    sound = {"start": metrics(), "sequence": metrics()}
    assert warnings({**sound, "fine_grained": metrics()}) == []
    (sentence,) = warnings({**sound, "fine_grained": metrics(**change)})
    assert complaint in sentence
    assert "fine-grained" in sentence


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 37.0), (-3.0, 0.2), (5.0, 5.0), (0.0, 1e-4)])
def test_ticks_are_few_and_cover_the_range(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 9


def test_a_chart_without_points_is_still_a_chart() -> None:
    assert line_chart("a < b", "x", {"n": ("#000", [])}).count("&lt;") == 2
