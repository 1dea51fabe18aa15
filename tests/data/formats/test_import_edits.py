"""Every format that can be imported: its rows, its annotators, and each way in which a record can be bad."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrl.data import read_pairs
from fgrl.data.formats import FORMATS, ImportReport, import_edits
from fgrl.data.formats.critic_markup import split_markup
from fgrl.data.formats.records import Options
from fgrl.data.share import edit_shares

HERE = Path(__file__).parent


def imported(
    tmp_path: Path, format: str, source: Any, *, suffix: str = ".json", on_error: Any = "raise", **options: Any
) -> tuple[list[dict[str, Any]], ImportReport]:
    """Rows and report of an import of a file, of text or of JSON."""
    if not isinstance(source, Path):
        path = tmp_path / f"source{suffix}"
        path.write_bytes(
            source
            if isinstance(source, bytes)
            else (source if isinstance(source, str) else json.dumps(source)).encode()
        )
        source = path
    out = tmp_path / "out.jsonl"
    report = import_edits(format, source, out, options=Options(**options), on_error=on_error)
    rows = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert len(list(read_pairs(out))) == report.rows == len(rows)
    return rows, report


def test_label_studio_gives_a_row_an_annotator(tmp_path: Path) -> None:
    rows, report = imported(tmp_path, "label-studio", HERE / "label_studio_export.json")
    sky = {"prompt": "Sky?", "original": "It is gren.", "id": "q1"}
    assert rows == [
        {**sky, "edited": "It is blue.", "annotator": "ana@example.org"},
        {**sky, "edited": "It is gren.", "annotator": "4"},
    ]
    assert (report.records, report.unchanged) == (2, 1)
    assert report.passed_over == {"skipped by the annotator": 1, "not annotated": 1}


def test_argilla_gives_a_row_an_annotator(tmp_path: Path) -> None:
    rows, report = imported(tmp_path, "argilla", HERE / "argilla_records.json")
    first, second = (f"8f1c0d9e-6a53-4e0e-9d53-5b0d1f3f0b0{n}" for n in (1, 2))
    sky = {"prompt": "Sky?", "original": "It is gren.", "source": "quiz", "id": "q1"}
    assert rows == [
        {**sky, "edited": "It is blue.", "annotator": first},
        {**sky, "edited": "It is gren.", "annotator": second},
        {"prompt": "Sea?", "original": "It is wet", "edited": "It is wet.", "annotator": first, "id": "q2"},
    ]
    assert report.passed_over == {"not annotated": 1}


@pytest.mark.parametrize("format", ["label-studio", "argilla"])
def test_one_annotator_can_be_asked_for(format: str, tmp_path: Path) -> None:
    source = HERE / ("label_studio_export.json" if format == "label-studio" else "argilla_records.json")
    everybody, _ = imported(tmp_path, format, source)
    name = everybody[0]["annotator"]
    rows, report = imported(tmp_path, format, source, annotators=(name,))
    assert rows == [row for row in everybody if row["annotator"] == name]
    assert report.passed_over["by other annotators"] == len(everybody) - len(rows)


def _at(record: Any, path: list[Any], value: Any) -> Any:
    """`record` with the value at `path` replaced, or removed where the value is `...`."""
    record = copy.deepcopy(record)
    place = record
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return record


AREA = ["annotations", 0, "result", 0]
BAD_LABEL_STUDIO = {
    "json-min": (["data"], ..., "JSON-MIN"),
    "data": (["data"], [], "'data' is a list of 0"),
    "no-annotations": (["annotations"], None, "'annotations' is null"),
    "annotation": (["annotations", 0], 3, "'annotations[0]' is of type int"),
    "no-original": (["data"], {"prompt": "p"}, "'original' is missing"),
    "no-prompt": (["data"], {"original": "p"}, "'prompt' is missing"),
    "original": (["data", "original"], 5, "'data.original' is of type int"),
    "emptied": (["annotations", 0, "result"], [], "has 0 text areas"),
    "result": (["annotations", 0, "result"], {}, "'annotations[0].result'"),
    "two-texts": ([*AREA, "value", "text"], ["a", "b"], "has 2 texts"),
    "no-text": ([*AREA, "value"], {}, "'annotations[0].result.value.text' is null"),
    "number": ([*AREA, "value", "text"], [1], "'annotations[0].result.value.text' is of type int"),
    "surrogate": ([*AREA, "value", "text"], ["\ud800"], "unpaired surrogate"),
    "annotator": (["annotations", 0, "completed_by"], [1], "'annotations[0].completed_by'"),
    "messages": (["data", "messages"], [{"role": 1}], "'data.messages[0].role'"),
}


@pytest.mark.parametrize("how", BAD_LABEL_STUDIO)
def test_a_bad_task_of_label_studio_is_named(how: str, tmp_path: Path) -> None:
    path, value, said = BAD_LABEL_STUDIO[how]
    tasks = json.loads((HERE / "label_studio_export.json").read_text())
    tasks[1] = _at(tasks[0], path, value)
    with pytest.raises(ValueError, match=r"source\.json, row 2: ") as error:
        imported(tmp_path, "label-studio", tasks)
    assert said in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()
    rows, report = imported(tmp_path, "label-studio", tasks, on_error="skip")
    assert (len(rows), report.skipped) == (2, 1)
    assert said in report.errors[0]


def test_two_text_areas_need_a_name(tmp_path: Path) -> None:
    (task, _) = json.loads((HERE / "label_studio_export.json").read_text())
    area = copy.deepcopy(task["annotations"][0]["result"][0])
    task["annotations"][0]["result"].append({**area, "from_name": "why", "value": {"text": ["a colour"]}})
    with pytest.raises(ValueError, match=r"2 text areas \(edited, why\)"):
        imported(tmp_path, "label-studio", [task])
    rows, _ = imported(tmp_path, "label-studio", [task], columns={"edited": "edited"})
    assert rows[0]["edited"] == "It is blue."


BAD_ARGILLA = {
    "fields": (["fields"], ..., "'fields' is null"),
    "responses": (["responses"], [1], "'responses' is a list of 1"),
    "answers": (["responses", "edited"], {"value": "a"}, "'responses.edited' is of type dict"),
    "answer": (["responses", "edited", 0], "a", "'responses.edited[0]' is text"),
    "value": (["responses", "edited", 0, "value"], 4, "'responses.edited[0].value' is of type int"),
    "no-prompt": (["fields"], {"original": "a"}, "'prompt' is missing"),
    "no-original": (["fields"], {"prompt": "a"}, "'suggestions.edited' is null"),
    "questions": (["responses"], {"a": [], "b": []}, "3 questions"),
    "kept": (["metadata"], {"fgrl_row": "{"}, "'metadata.fgrl_row' is no JSON"),
}


@pytest.mark.parametrize("how", BAD_ARGILLA)
def test_a_bad_record_of_argilla_is_named(how: str, tmp_path: Path) -> None:
    path, value, said = BAD_ARGILLA[how]
    records = json.loads((HERE / "argilla_records.json").read_text())
    records[0] = _at(records[0], path, value)
    if how == "no-original":
        records[0]["suggestions"] = {}
    if how == "questions":
        records[0]["suggestions"] = {"c": {"value": "x"}}
    with pytest.raises(ValueError, match=r"source\.json, row 1: ") as error:
        imported(tmp_path, "argilla", records)
    assert said in str(error.value)


@pytest.mark.parametrize("status", ["draft", "discarded"])
def test_drafts_of_argilla_are_no_edits(status: str, tmp_path: Path) -> None:
    records = json.loads((HERE / "argilla_records.json").read_text())
    records[0]["responses"]["edited"][0]["status"] = status  # an export with a status a response
    records[1]["status"] = status
    rows, report = imported(tmp_path, "argilla", records)
    assert [row["edited"] for row in rows] == ["It is gren."]
    assert report.passed_over["drafts or discarded"] == 2


M2 = """S This are a sentence .
A 1 2|||R:VERB:SVA|||is|||REQUIRED|||-NONE-|||0
A 4 4|||M:OTHER|||indeed|||REQUIRED|||-NONE-|||0
A 1 3|||R:OTHER|||is the||was the|||REQUIRED|||-NONE-|||1
A 3 4|||U:NOUN||||||REQUIRED|||-NONE-|||1

S All good .
A -1 -1|||noop|||-NONE-|||REQUIRED|||-NONE-|||0

S Untouched .
"""


def test_m2_applies_the_edits_of_each_annotator(tmp_path: Path) -> None:
    rows, _ = imported(tmp_path, "m2", M2, suffix=".m2", prompt="Correct it.")
    first = {"prompt": "Correct it.", "original": "This are a sentence ."}
    assert rows == [
        {
            **first,
            "edited": "This is a sentence indeed .",
            "annotator": "0",
            "error_spans": [{"start": 5, "end": 8}],
        },
        {
            **first,
            "edited": "This is the .",
            "annotator": "1",
            "error_spans": [{"start": 5, "end": 10}, {"start": 11, "end": 19}],
        },
        {
            "prompt": "Correct it.",
            "original": "All good .",
            "edited": "All good .",
            "annotator": "0",
            "error_spans": [],
        },
        {"prompt": "Correct it.", "original": "Untouched .", "edited": "Untouched ."},
    ]
    only, report = imported(tmp_path, "m2", M2, suffix=".m2", prompt="Correct it.", annotators=("1",))
    assert [row["edited"] for row in only] == ["This is the ."]
    assert report.passed_over == {"by other annotators": 3}


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("A 0 1|||R|||x|||REQUIRED|||-NONE-|||0", "must begin with 'S '"),
        ("S a b\nB 0 1", "must begin with 'A '"),
        ("S a b\nA 0|||R|||x|||REQUIRED|||-NONE-|||0", "cannot be read"),
        ("S a b\nA 0 1|||R|||x", "cannot be read"),
        ("S a b\nA 1 3|||R|||x|||REQUIRED|||-NONE-|||0", "within the 2 tokens"),
        ("S a b\nA 2 1|||R|||x|||REQUIRED|||-NONE-|||0", "within the 2 tokens"),
        ("S a b\nA 0 2|||R|||x|||R|||-|||0\nA 1 2|||R|||y|||R|||-|||0", "overlap at token 1"),
    ],
)
def test_a_bad_block_of_m2_is_named_by_its_line(block: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source\.m2, line 3: ") as error:
        imported(tmp_path, "m2", f"S fine\n\n{block}\n", suffix=".m2", prompt="p")
    assert said in str(error.value)


def test_m2_needs_a_prompt(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the prompt is missing"):
        imported(tmp_path, "m2", M2, suffix=".m2")


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("src\tmt\tpe\nCerul?\tgren\tgreen\n", {}),
        ("prompt\toriginal\tedited\nCerul?\tgren\tgreen\n", {}),
        ("\ufeffpe\tmt\tsrc\r\ngreen\tgren\tCerul?\r\n", {}),
        ("Cerul?\tgren\tgreen\n\n", {}),
        ("0.3\tgreen\tgren\tCerul?\n", {"original": "3", "edited": "2", "prompt": "4"}),
        ("a\tb\tc\ngreen\tCerul?\tgren\n", {"original": "c", "edited": "a", "prompt": "b"}),
    ],
    ids=["mt", "names", "bom-crlf", "no-header", "numbers", "named"],
)
def test_tsv_finds_its_columns(text: str, columns: dict[str, str], tmp_path: Path) -> None:
    rows, _ = imported(tmp_path, "tsv", text, suffix=".tsv", columns=columns)
    assert rows == [{"prompt": "Cerul?", "original": "gren", "edited": "green"}]


def test_tsv_keeps_other_columns_and_annotators(tmp_path: Path) -> None:
    text = 'src\tmt\tpe\tannotator\thter\n"a\tb\tc\tx\t0.5\n'
    rows, _ = imported(tmp_path, "tsv", text, suffix=".tsv")
    assert rows == [{"prompt": '"a', "original": "b", "edited": "c", "annotator": "x", "hter": "0.5"}]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("a\tb\tc\na\tb\n", {}, "line 2: the line has 2 columns"),
        ("a\tb\n", {}, "the prompt is missing"),
        ("a\tb\tc\td\n", {}, "must have 2 or 3"),
        ("a\tb\tc\n", {"columns": {"original": "9", "edited": "1"}}, "columns['original'] is '9'"),
        ("a\tb\tc\n", {"columns": {"original": "1"}}, "without 'original' or 'edited'"),
        (b"a\tb\t\xff\na\tb\tc\n", {}, "not UTF-8"),
    ],
)
def test_a_bad_tsv_is_named(text: Any, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        imported(tmp_path, "tsv", text, suffix=".tsv", **options)
    assert said in str(error.value)


def test_aligned_files(tmp_path: Path) -> None:
    for name, text in (("a.mt", "gren\u2028x\r\nb\n"), ("a.pe", "green\u2028x\nb\n"), ("a.src", "Cerul?\nB?\n")):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    files = {"edited_file": tmp_path / "a.pe", "prompt_file": tmp_path / "a.src"}
    rows, report = imported(tmp_path, "aligned", tmp_path / "a.mt", **files)
    assert rows == [
        {"prompt": "Cerul?", "original": "gren\u2028x", "edited": "green\u2028x"},
        {"prompt": "B?", "original": "b", "edited": "b"},
    ]
    assert report.unchanged == 1
    (tmp_path / "out.jsonl").unlink()
    (tmp_path / "a.pe").write_text("green\n")
    with pytest.raises(ValueError, match="differ in length at line 2"):
        imported(tmp_path, "aligned", tmp_path / "a.mt", on_error="skip", **files)
    assert not (tmp_path / "out.jsonl").exists()


def test_critic_markup_of_a_document(tmp_path: Path) -> None:
    text = "It {==was==}{>>tense?<<} {~~gren~>blue~~}{++,\nindeed++}{-- very--}.\n"
    rows, _ = imported(tmp_path, "critic-markup", text, suffix=".md", prompt="Sky?")
    assert rows == [
        {
            "prompt": "Sky?",
            "original": "It was gren very.\n",
            "edited": "It was blue,\nindeed.\n",
            "error_spans": [{"start": 3, "end": 6}],
            "comments": ["tense?"],
        }
    ]


def test_critic_markup_of_rows(tmp_path: Path) -> None:
    rows, _ = imported(tmp_path, "critic-markup", [{"prompt": "p", "markup": "a{++b++}", "id": 1}])
    assert rows == [{"prompt": "p", "original": "a", "edited": "ab", "id": 1}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a {++b", "at character 2 does not end"),
        ("a {~~b~~}", "has no '~>'"),
        ("{++ {--a--} ++}", "must not nest"),
        ("{>>b", "does not end"),
    ],
)
def test_bad_critic_markup_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source\.json, row 1: ") as error:
        imported(tmp_path, "critic-markup", [{"prompt": "p", "markup": text}])
    assert said in str(error.value)


PLAIN = st.text(alphabet=st.sampled_from("ab é\n.{}~"), max_size=6).filter(lambda t: "{" not in t and "~" not in t)


@given(st.lists(st.tuples(st.sampled_from(["keep", "add", "remove", "replace", "mark", "note"]), PLAIN, PLAIN)))
def test_critic_markup_is_undone(parts: list[tuple[str, str, str]]) -> None:
    """Markup written from known sides gives these sides."""
    forms = {
        "keep": (lambda a, b: (a, a, a)),
        "add": (lambda a, b: (f"{{++{a}++}}", "", a)),
        "remove": (lambda a, b: (f"{{--{a}--}}", a, "")),
        "replace": (lambda a, b: (f"{{~~{a}~>{b}~~}}", a, b)),
        "mark": (lambda a, b: (f"{{=={a}==}}", a, a)),
        "note": (lambda a, b: (f"{{>>{a}<<}}", "", "")),
    }
    made = [forms[kind](a, b) for kind, a, b in parts]
    original, edited, spans, comments = split_markup("".join(part[0] for part in made))
    assert original == "".join(part[1] for part in made)
    assert edited == "".join(part[2] for part in made)
    assert [original[start:end] for start, end in spans] == [a for kind, a, _ in parts if kind == "mark"]
    assert comments == [a.strip() for kind, a, _ in parts if kind == "note"]


def test_preference_pairs_that_are_close_are_edits(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Sky?"}]
    source = [
        {"prompt": "p", "chosen": "It is blue .", "rejected": "It is gren .", "score": 2},
        {"prompt": "p", "chosen": "No idea at all", "rejected": "It is gren ."},
        {"prompt": "p", "chosen": "a", "rejected": "a"},
        {
            "chosen": [*turns, {"role": "assistant", "content": "a b c d e"}],
            "rejected": [*turns, {"role": "assistant", "content": "a b c d"}],
        },
    ]
    rows, report = imported(tmp_path, "preferences", source)
    assert rows == [
        {"prompt": "p", "original": "It is gren .", "edited": "It is blue .", "score": 2},
        {"prompt": turns, "original": "a b c d", "edited": "a b c d e"},
    ]
    assert report.passed_over == {"changed in more than 0.3 of their words": 1, "equal on both sides": 1}


def test_an_unknown_format_or_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format is 'docx'; it must be one of label-studio"):
        import_edits("docx", tmp_path / "a", tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match=r"must end in \.jsonl"):
        import_edits("m2", tmp_path / "a", tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="columns has the field 'nothing'"):
        imported(tmp_path, "argilla", [], columns={"nothing": "x"})


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_file_is_one_sentence(format: str, tmp_path: Path) -> None:
    options = Options(prompt="p", edited_file=tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="must be one"):
        import_edits(format, tmp_path / "no.json", tmp_path / "b.jsonl", options=options)


@pytest.mark.parametrize("name", ["mlqe_pe_ro_en", "mlqe_pe_ru_en"])
def test_post_edits_of_people(name: str, real_data: Path, tmp_path: Path) -> None:
    columns = {"prompt": "source"}
    source = real_data / f"{name}.jsonl"
    rows, report = imported(tmp_path, "preferences", source, columns=columns, max_edit_share=0.3)
    raw = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    shares = edit_shares([row["original"] for row in raw], [row["edited"] for row in raw])
    close = [row["id"] for row, share in zip(raw, shares, strict=True) if 0 < share <= 0.3]
    assert [row["id"] for row in rows if row["id"] in set(close)] == close
    assert report.records == len(raw) == 8000

    lines = [[row[key].replace("\t", " ") for key in ("source", "original", "edited", "id")] for row in raw]
    text = "\n".join("\t".join(line) for line in [["src", "mt", "pe", "id"], *lines])
    rows, _ = imported(tmp_path, "tsv", text, suffix=".tsv")
    assert [list(row.values()) for row in rows] == lines
