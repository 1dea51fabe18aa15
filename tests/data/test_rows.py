from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest

from fgrl.data import read_pairs
from fgrl.data.rows import RowError

ROW = {"prompt": "p", "original": "a", "edited": "b"}


def row(number):
    return {"prompt": f"p{number}", "original": f"a{number}", "edited": f"b{number}"}


def test_lines_end_at_newlines_only(tmp_path):
    # U+2028 and U+0085 end a line for str.splitlines, but not in a JSON-lines file
    path = tmp_path / "x.jsonl"
    text = "\n".join(json.dumps({**ROW, "edited": text}, ensure_ascii=False) for text in ("a\u2028b", "c\x85d"))
    path.write_bytes(text.encode())
    assert [pair.edited for pair in read_pairs(path)] == ["a\u2028b", "c\x85d"]


def test_byte_order_mark_crlf_and_blank_lines_keep_line_numbers(tmp_path):
    path = tmp_path / "x.jsonl"
    line = json.dumps(ROW).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n   \n" + line + b"\r\n" + line)
    assert [pair.line for pair in read_pairs(path)] == [1, 4, 5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "p", ', r"bad\.jsonl, line 2: the line is not valid JSON \(.* at column \d+\)"),
        (b"[1, 2]", "line 2: the row must be an object with fields, got list"),
        (b"null", "line 2: the row must be an object with fields, got NoneType"),
        (b'{"prompt": "\xff"}', "line 2: the line is not UTF-8"),
        (b"[" * 100_000, "line 2: the line is not "),
        (b'{"n": ' + b"9" * 10_000 + b"}", "line 2: the line is not usable JSON"),
    ],
    ids=["cut off", "array", "null", "latin-1", "deep nesting", "huge integer"],
)
def test_bad_line_is_named_and_the_rest_is_kept(write_jsonl, line, message):
    path = write_jsonl([ROW, line, ROW], "bad.jsonl")
    with pytest.raises(RowError, match=message):
        list(read_pairs(path))
    reader = read_pairs(path, on_error="skip")
    assert [pair.line for pair in reader] == [1, 3]
    assert reader.skipped == 1
    assert "line 2" in reader.errors[0]


def test_counts_start_again_with_each_iteration(write_jsonl):
    reader = read_pairs(write_jsonl([b"?", ROW, *[b"?"] * 20]), on_error="skip")
    for _ in range(2):
        assert len(list(reader)) == 1
        assert reader.skipped == 21
        assert len(reader.errors) == 10


def test_kinds_of_source_agree(tmp_path, write_jsonl):
    rows = [{**row(number), "error_spans": [{"start": 0, "end": 1}]} for number in range(600)]
    lines = write_jsonl(rows)
    with gzip.open(tmp_path / "x.jsonl.gz", "wb") as file:
        file.write(lines.read_bytes())
    (tmp_path / "x.json").write_text(json.dumps(rows, indent=2), encoding="utf-8-sig")
    parquet = pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(rows)
    parquet.write_table(dataset.data.table, tmp_path / "x.parquet", row_group_size=100)
    sources = [
        lines, tmp_path / "x.jsonl.gz", tmp_path / "x.json", tmp_path / "x.parquet", rows, dataset,
        dataset.to_iterable_dataset(),
    ]  # fmt: skip
    expected = list(read_pairs(rows))
    for source in sources:
        reader = read_pairs(source)
        assert list(reader) == expected
        assert list(reader) == expected, "a second pass"


def test_json_array_with_long_elements_and_every_chunk_boundary(tmp_path):
    rows = [{**ROW, "original": 'é]}\\"[' * size} for size in (0, 1, 5_000, 40_000, 3)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert [pair.original for pair in read_pairs(path)] == [row["original"] for row in rows]


def test_broken_json_array_is_reported_even_when_skipping(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([ROW, ROW])[:-10])
    with pytest.raises(RowError, match=r"x\.json, row 2: the array is not valid JSON"):
        list(read_pairs(path, on_error="skip"))


def test_an_iterator_is_not_silently_empty_the_second_time():
    reader = read_pairs(iter([ROW]))
    assert len(list(reader)) == 1
    with pytest.raises(ValueError, match="already read"):
        list(reader)


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_partition_the_rows(write_jsonl, shards):
    path = write_jsonl([row(number) if number % 5 else b"?" for number in range(20)])
    everything = [pair.line for pair in read_pairs(path, on_error="skip")]
    readers = [read_pairs(path, on_error="skip").shard(shards, index) for index in range(shards)]
    assert sorted(pair.line for reader in readers for pair in reader) == everything
    assert sum(reader.skipped for reader in readers) == 4
    nested = [reader.shard(2, half) for reader in readers for half in range(2)]
    assert sorted(pair.line for reader in nested for pair in reader) == everything


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .*\.jsonl.* got 'x.csv'"):
        read_pairs("x.csv")
    with pytest.raises(FileNotFoundError, match="not a file"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        read_pairs([], on_error="ignore")
    with pytest.raises(ValueError, match="index must be in"):
        read_pairs([]).shard(2, 2)


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(rows):
        path = tmp_path / f"{rows}.jsonl"
        with open(path, "w") as file:
            for number in range(rows):
                file.write(json.dumps({**row(number), "passage": "x" * 200}) + "\n")
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_pairs(path)) == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(1_000), peak(10_000)
    assert large < small + 100_000, "ten times the rows, 2.5 MB more on disk"
