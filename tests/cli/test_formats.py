"""`fgrl import` and `fgrl export`: what they print, their exit codes, and that a mistake loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgrl.cli import main

PAIRS = [
    {"prompt": "p", "chosen": "It is blue .", "rejected": "It is gren ."},
    {"prompt": "p", "chosen": "No idea at all", "rejected": "It is gren ."},
    {"prompt": "p", "chosen": 3, "rejected": "It is gren ."},
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return path


def test_import_says_what_became_of_the_records(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["import", "preferences", str(pairs), "--out", str(out), "--on-error", "skip"]) == 0
    said = capsys.readouterr().err
    assert "no edit: 1 changed in more than 0.3 of their words" in said
    assert "2 records, 1 rows (0 unchanged); 1 bad records skipped" in said
    assert "skipped: pairs.jsonl, line 3: field 'chosen' is of type int; it must be text" in said


def test_a_bad_record_leaves_the_output(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    assert main(["import", "preferences", str(pairs), "--out", str(out)]) == 2
    assert capsys.readouterr().err == "fgrl: pairs.jsonl, line 3: field 'chosen' is of type int; it must be text\n"
    assert out.read_text() == "old"
    assert main(["import", "preferences", str(pairs), "--out", str(pairs)]) == 2
    assert main(["import", "aligned", str(pairs), "--out", str(out), "--prompt", "p", "--edited-file", "nowhere"]) == 2
    assert "fgrl: nowhere cannot be used: No such file" in capsys.readouterr().err


def test_export_and_import_are_a_round_trip(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "argilla", str(pairs), "--out", str(tmp_path / "tasks"), "--on-error", "skip"]) == 0
    assert "2 tasks; 1 bad rows skipped; records.json and settings.json in" in capsys.readouterr().err
    records = tmp_path / "tasks" / "records.json"
    assert main(["import", "argilla", str(records), "--out", str(tmp_path / "back.jsonl")]) == 0
    assert "no edit: 2 not annotated" in capsys.readouterr().err
