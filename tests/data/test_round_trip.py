"""Every reader and every writer: nothing of a row is lost on the way."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgrl.data import read_pairs
from fgrl.data.align_file import align_file
from fgrl.data.fields import without_fillers

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALAR = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT
NESTED = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "tool"]), "content": TEXT},
    optional={"name": TEXT, "tool_calls": st.lists(st.dictionaries(TEXT, NESTED, max_size=2), max_size=2), "x": NESTED},
)
PROMPT = TEXT | st.lists(MESSAGE, min_size=1, max_size=3)
ROW = st.fixed_dictionaries(
    {"prompt": PROMPT, "original": TEXT, "edited": TEXT},
    optional={"tools": st.lists(st.dictionaries(TEXT, NESTED, min_size=1, max_size=2), min_size=1, max_size=2)},
)


def write_source(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.name.startswith("array"):
        content = json.dumps(rows, indent=1).encode()
    else:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def comparable(pairs: Any) -> list[Any]:
    """Pairs as JSON text; a null in a message is an absent field, in a column as in a chat template."""
    return [
        json.dumps([without_fillers(pair.prompt), pair.original, pair.edited, pair.tools], sort_keys=True)
        for pair in pairs
    ]


@pytest.mark.parametrize("source", ["lines.jsonl", "lines.jsonl.gz", "lines.ndjson", "array.json", "array.json.gz"])
@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=4))
def test_aligned_pairs_have_everything_or_are_refused(source: str, out: str, rows: Any, tmp_path: Path) -> None:
    if out.endswith("parquet"):
        pytest.importorskip("pyarrow")
    write_source(tmp_path / source, rows)
    expected = comparable(read_pairs(tmp_path / source))
    assert len(expected) == len(rows)
    refusal = None
    try:
        align_file(tmp_path / source, tmp_path / out, overwrite=True)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert out == "out.parquet"
        assert "does not fit the column of a Parquet file" in refusal
        return
    assert comparable(read_pairs(tmp_path / out)) == expected


CALLS = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w", "arguments": {"city": "Bonn"}}}]},
    {"role": "tool", "content": "rain", "name": "w", "tool_call_id": "1"},
]
OTHER = [
    {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "v", "arguments": {"n": 2}}, "id": "7"}]}
]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_parquet_keeps_all_fields_of_all_messages(batch_size: int, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("fgrl.data.writers.ParquetWriter.interval", 0.0)  # a part for each batch, with its own fields
    source, out = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    rows = [{"prompt": prompt, "original": "a", "edited": "b"} for prompt in (CALLS, OTHER, CALLS[:1], CALLS)]
    write_source(source, rows)
    align_file(source, out, batch_size=batch_size)
    assert [pair.prompt for pair in read_pairs(out)] == [without_fillers(row["prompt"]) for row in rows]
    datasets = pytest.importorskip("datasets")
    loaded = datasets.Dataset.from_parquet(str(out), cache_dir=str(tmp_path / "cache"))
    assert [pair.prompt for pair in read_pairs(loaded)] == [without_fillers(row["prompt"]) for row in rows]


@pytest.mark.parametrize("second", ["text", [{"x": 1}], {"x": "1"}, {}, 1.5, math.pi, [[]]])
def test_what_a_column_cannot_hold_is_refused_with_its_line(second: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source = tmp_path / "a.jsonl"
    prompts = [[{"role": "user", "content": "q", "extra": extra}] for extra in ({"x": 1}, second)]
    write_source(source, [{"prompt": prompt, "original": "a", "edited": "b"} for prompt in prompts])
    with pytest.raises(ValueError, match="line 2: field 'prompt' does not fit the column of a Parquet file"):
        align_file(source, tmp_path / "a.parquet")
    assert align_file(source, tmp_path / "a.jsonl.out.jsonl").pairs == 2
