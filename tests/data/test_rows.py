from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest

from fgrl.data import read_pairs
from fgrl.data.rows import RowError, iterate_rows

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
        (b"[1, 2]", "line 2: the row is a list of 2; it must be an object with fields"),
        (b"null", "line 2: the row is null; it must be an object with fields"),
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
    with pytest.raises(ValueError, match=r"source is 'x.csv'; it must end in .*\.jsonl"):
        read_pairs("x.csv")
    with pytest.raises(FileNotFoundError, match="not a file"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="on_error is 'ignore'; it must be 'raise' or 'skip'"):
        read_pairs([], on_error="ignore")
    with pytest.raises(ValueError, match=r"index is .*; it must be in"):
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


@pytest.mark.parametrize(
    "content",
    [
        *("[{}][{}]", "[{}] x", "[{}]]", "[{},,{}]", "[[{}]]]", "[{} {}]", "[{},]", "[,{}]", "[", "[{}", "[{},", "[1e"),
        '[{"a": 1, "a": 2}]',
    ],
)  # fmt: skip
@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("long", [False, True], ids=["one chunk", "two chunks"])
def test_what_is_no_single_array_is_refused_and_never_cut(tmp_path, content, on_error, long):
    path = tmp_path / "x.json"
    path.write_text(" " * (1 << 16) * long + content)
    with pytest.raises(RowError, match=r"x\.json, row \d: .*; it must be one valid JSON array"):
        list(iterate_rows(path)) if on_error == "raise" else list(read_pairs(path, on_error="skip"))


@pytest.mark.parametrize("content", ["[]", " [ ] \n", "[1, 22, 333]", "[1,\n2]\n\n", "[" + "1" * 70_000 + "]"])
def test_whole_arrays(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    if len(content) < 1000:
        assert [row.content for row in iterate_rows(path)] == json.loads(content)
    else:
        with pytest.raises(RowError, match="the array cannot be read"):
            list(iterate_rows(path))


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip", "cut header"])
@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_damaged_gzip_file_is_one_sentence_and_is_not_skipped(tmp_path, damage, name, on_error):
    rows = [{**ROW, "original": str(number * 7919)} for number in range(5_000)]
    text = json.dumps(rows) if name == "x.json.gz" else "".join(json.dumps(row) + "\n" for row in rows)
    content = bytearray(gzip.compress(text.encode()))
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    spoiled = {"cut": content[: len(content) // 2], "no gzip": b"{}" * 100, "cut header": content[:6]}
    (tmp_path / name).write_bytes(spoiled.get(damage, content))
    with pytest.raises(RowError, match=rf"^{name} is damaged|not UTF-8|not valid JSON"):
        list(read_pairs(tmp_path / name, on_error=on_error))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "x.jsonl is a Git LFS pointer"),
        ("x.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "x.json is a Git LFS pointer"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\n", "x.parquet is damaged or no Parquet file"),
        ("x.parquet", b"", "x.parquet is damaged or no Parquet file"),
        ("x.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "x.parquet is damaged or no Parquet file"),
        ("x.jsonl", json.dumps(ROW).encode("utf-16"), "x.jsonl is UTF-16, UTF-32 or no text"),
        ("x.json", json.dumps([ROW]).encode("utf-16-le"), "x.json is UTF-16, UTF-32 or no text"),
        ("x.json", json.dumps([ROW]).encode("utf-32"), "x.json is UTF-16, UTF-32 or no text"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_file_that_is_something_else_is_refused_as_a_whole(tmp_path, name, content, message, on_error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RowError, match=message):
        list(read_pairs(tmp_path / name, on_error=on_error))


def test_files_put_together_keep_every_row(tmp_path):
    path = tmp_path / "x.jsonl"
    whole = b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\n"
    path.write_bytes(whole * 3 + b'{"a": 1}{"b": 2}\n{"a": 1, "a": 2}\n\0\n')
    reader = read_pairs(path, on_error="skip")
    assert [pair.line for pair in reader] == [1, 2, 3]
    assert [message.split(": ")[1][:34] for message in reader.errors] == [
        "the line is not valid JSON (Extra ",
        "the line is not usable JSON (field",
        "the line is not valid JSON (Expect",
    ]
    gz = tmp_path / "y.jsonl.gz"
    gz.write_bytes(gzip.compress(whole) * 2)
    assert len(list(read_pairs(gz))) == 2
