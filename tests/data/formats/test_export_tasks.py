"""What is exported, annotated and imported again is the same row, with an annotator."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from fgrl.data.formats import EXPORT_FORMATS, export_tasks, import_edits

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sea? <b>&amp;</b>"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "Sky?", "response": "It is gren.", "id": "7", "error_spans": [{"start": 6, "end": 10}], "split": "a"},
    {"prompt": TURNS, "response": "Blu", "edited": "Blue", "annotator": "some-model", "tools": [{"name": "x"}]},
    {"prompt": "", "rejected": "worse", "chosen": "better", "none": None},
]


def annotated(format: str, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tasks as the tool exports them after Ana submitted what the text area began with, and an exclamation mark."""
    if format == "label-studio":
        return [
            {
                "id": index,
                **task,
                "annotations": [
                    {
                        "completed_by": {"email": "ana"},
                        "result": [
                            {
                                "type": "textarea",
                                "from_name": "edited",
                                "value": {"text": [task["data"]["prefill"] + "!"]},
                            }
                        ],
                    }
                ],
            }
            for index, task in enumerate(tasks)
        ]
    return [
        {**task, "responses": {"edited": [{"value": task["suggestions"]["edited"]["value"] + "!", "user_id": "ana"}]}}
        for task in tasks
    ]


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_a_round_trip_loses_nothing(format: str, tmp_path: Path) -> None:
    report = export_tasks(format, ROWS, tmp_path / "tasks")
    assert report.tasks == 3
    path = tmp_path / "tasks" / report.files[0]
    tasks = json.loads(path.read_text(encoding="utf-8"))
    (tmp_path / "done.json").write_text(json.dumps(annotated(format, tasks)))
    import_edits(format, tmp_path / "done.json", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows[1:]:
        row.pop("id", None)  # the tool's own
    assert rows == [
        {
            "prompt": "Sky?",
            "original": "It is gren.",
            "edited": "It is gren.!",
            "annotator": "ana",
            "id": "7",
            "error_spans": [{"start": 6, "end": 10}],
            "split": "a",
        },
        {
            "prompt": TURNS,
            "original": "Blu",
            "edited": "Blue!",
            "annotator": "ana",
            "suggested_by": "some-model",
            "tools": [{"name": "x"}],
        },
        {
            "prompt": "",
            "original": "worse",
            "edited": "worse!",
            "annotator": "ana",
            "none": None,
            "better": "better",
        },
    ]


def test_the_labeling_configuration_shows_what_the_tasks_have(tmp_path: Path) -> None:
    report = export_tasks("label-studio", ROWS, tmp_path)
    tasks = json.loads((tmp_path / report.files[0]).read_text())
    view = ElementTree.parse(tmp_path / report.files[1]).getroot()
    shown = {tag.attrib["value"][1:] for tag in view if tag.attrib.get("value", "").startswith("$")}
    assert all(isinstance(task["data"][name], str) for task in tasks for name in shown)
    (area,) = view.iter("TextArea")
    assert area.attrib["toName"] in {tag.attrib.get("name") for tag in view.iter("Text")}


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_no_rows_are_no_tasks(format: str, tmp_path: Path) -> None:
    report = export_tasks(format, [], tmp_path / "new" / "folder")
    assert json.loads((tmp_path / "new" / "folder" / report.files[0]).read_text()) == []


def test_a_bad_row_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    export_tasks("argilla", ROWS, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="list, row 2: field 'original' is missing"):
        export_tasks("argilla", [ROWS[0], {"prompt": "p"}], tmp_path)
    with pytest.raises(ValueError, match="row 1: field 'prefill' is in the row besides"):
        export_tasks("label-studio", [{**ROWS[0], "prefill": 1}], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert export_tasks("argilla", [ROWS[0], {"prompt": "p"}], tmp_path, on_error="skip").skipped == 1
