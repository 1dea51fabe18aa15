from __future__ import annotations

import json
import tracemalloc
from itertools import chain, islice

import pytest

from fgrl.data import read_pairs
from fgrl.data.align_file import align_file
from fgrl.data.writers import JsonlWriter, ParquetWriter

KINDS = ["jsonl", "parquet"]


def row(number):
    return {
        "prompt": f"question {number}",
        "original": f"the cat {number} sat on teh mat",
        "edited": f"the cat {number} sat on the mat",
        "error_spans": [{"start": 0, "end": 3}] if number % 2 else None,
    }


@pytest.fixture
def checkpoint_always(monkeypatch):
    for writer in (JsonlWriter, ParquetWriter):
        monkeypatch.setattr(writer, "interval", 0.0)


def read(path):
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def interrupt_after(count):
    def watch(rows, done):
        yield from islice(rows, count)
        raise KeyboardInterrupt

    return watch


def leftovers(folder, *known):
    return sorted(path.name for path in folder.iterdir() if path not in known)


@pytest.mark.parametrize("kind", KINDS)
def test_a_record(tmp_path, write_jsonl, kind):
    source, out = write_jsonl([row(0), row(1)]), tmp_path / f"out.{kind}"
    report = align_file(source, out)
    assert (report.pairs, report.tokens, report.skipped) == (2, 28, 0)
    assert report.pairs_per_second > 0
    assert report.tokens_per_second == pytest.approx(14 * report.pairs_per_second)
    first, second = read(out)
    assert {name: first[name] for name in ("prompt", "original", "edited", "error_spans")} == row(0)
    assert (first["line"], second["line"]) == (1, 2)
    assert first["distance"] == 1
    tags = [tuple(code.values()) if isinstance(code, dict) else tuple(code) for code in first["opcodes"]]
    assert tags == [("equal", 0, 5, 0, 5), ("replace", 5, 6, 5, 6), ("equal", 6, 7, 6, 7)]
    assert first["original_tokens"] == ["the", "cat", "0", "sat", "on", "teh", "mat"]
    assert [row(0)["edited"][start:end] for start, end in first["edited_offsets"]] == first["edited_tokens"]
    assert first["original_labels"] == first["edited_labels"] == [0, 0, 0, 0, 0, 1, 0]
    assert first["original_edits"] == first["edited_edits"] == [0, 0, 0, 0, 0, 1, 0]
    assert first["original_errors"] is None
    assert second["original_errors"] == [1, 0, 0, 0, 0, 0, 0]
    assert leftovers(tmp_path, source, out) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_can_be_read_as_pairs(tmp_path, write_jsonl, kind):
    source, out = write_jsonl([row(number) for number in range(5)]), tmp_path / f"out.{kind}"
    align_file(source, out)
    assert list(read_pairs(out)) == list(read_pairs(source))


def test_hugging_face_tokenizer(tmp_path, write_jsonl, byte_bpe):
    source = write_jsonl([{"prompt": "p", "original": "the unhappyest cat", "edited": "the unhappiest cat"}])
    for kind in KINDS:
        align_file(source, tmp_path / f"out.{kind}", tokenizer=byte_bpe, tokenizer_name="byte", edit_unit="word")
        (record,) = read(tmp_path / f"out.{kind}")
        assert record["original_ids"] == byte_bpe("the unhappyest cat")["input_ids"]
        assert record["original_tokens"] == byte_bpe.convert_ids_to_tokens(record["original_ids"])
        assert sum(record["original_edits"]) > sum(label != 0 for label in record["original_labels"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_interrupt_anywhere_loses_and_doubles_nothing(
    tmp_path, write_jsonl, checkpoint_always, kind, source_kind, batch_size
):
    rows = [row(number) for number in range(8)]
    source = write_jsonl(rows)
    if source_kind == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        source = tmp_path / "pairs.parquet"
        parquet.write_table(arrow.Table.from_pylist(rows), source)
    align_file(source, tmp_path / f"whole.{kind}")
    expected = read(tmp_path / f"whole.{kind}")
    for count in range(9):
        out = tmp_path / f"out{count}.{kind}"
        with pytest.raises(KeyboardInterrupt):
            align_file(source, out, batch_size=batch_size, watch=interrupt_after(count))
        assert not out.exists()
        with pytest.raises(KeyboardInterrupt):  # a second interrupt, one row further
            align_file(source, out, batch_size=batch_size, watch=interrupt_after(1))
        report = align_file(source, out, batch_size=batch_size)
        assert read(out) == expected
        assert report.pairs == 8
        assert report.resumed_pairs == (count // batch_size + (1 // batch_size if count < 8 else 0)) * batch_size
        assert leftovers(tmp_path, source, out, *tmp_path.glob("whole*"), *tmp_path.glob("out?.*"))[:1] in (
            [],
            ["pairs.jsonl"],
        )


@pytest.mark.parametrize("torn", [b'{"line":99,"pro', b'{"line":99}\n{"line":100}\n'], ids=["torn line", "whole lines"])
def test_lines_that_no_checkpoint_covers_are_redone(tmp_path, write_jsonl, checkpoint_always, torn):
    source, out = write_jsonl([row(number) for number in range(6)]), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        align_file(source, out, batch_size=2, watch=interrupt_after(4))
    with open(tmp_path / "out.jsonl.partial", "ab") as partial:
        partial.write(torn)
    align_file(source, out)
    assert [record["line"] for record in read(out)] == [1, 2, 3, 4, 5, 6]


def test_parts_that_no_checkpoint_covers_are_redone(tmp_path, write_jsonl, checkpoint_always):
    source, out = write_jsonl([row(number) for number in range(6)]), tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt):
        align_file(source, out, batch_size=2, watch=interrupt_after(4))
    parts = tmp_path / "out.parquet.parts"
    (parts / "part-000002.parquet").write_bytes((parts / "part-000000.parquet").read_bytes())
    (parts / "part-000003.partial").write_bytes(b"PAR1 torn")
    align_file(source, out)
    assert [record["line"] for record in read(out)] == [1, 2, 3, 4, 5, 6]


def test_interrupted_before_the_first_checkpoint(tmp_path, write_jsonl):
    source, out = write_jsonl([row(number) for number in range(6)]), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        align_file(source, out, batch_size=2, watch=interrupt_after(5))
    align_file(source, out)
    assert len(read(out)) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_row_keeps_what_was_done_and_can_be_repaired(tmp_path, write_jsonl, kind):
    rows = [row(number) for number in range(7)]
    source, out = write_jsonl([*rows[:4], b"{broken", *rows[5:]]), tmp_path / f"out.{kind}"
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 5: the line is not valid JSON"):
        align_file(source, out)
    write_jsonl([*rows, row(7)])  # the line repaired, and one added
    report = align_file(source, out)
    assert (report.pairs, report.resumed_pairs) == (8, 4)
    assert [record["line"] for record in read(out)] == list(range(1, 9))


def test_bad_rows_are_counted_over_all_runs(tmp_path, write_jsonl, checkpoint_always):
    rows = [row(number) for number in range(6)]
    source, out = write_jsonl([b"?", *rows[:3], b"?", *rows[3:], b"?"]), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="line 1"):
        align_file(source, out)
    with pytest.raises(KeyboardInterrupt):
        align_file(source, out, on_error="skip", batch_size=2, watch=interrupt_after(6))
    report = align_file(source, out, on_error="skip", batch_size=2)
    assert (report.pairs, report.skipped) == (6, 3)
    assert [message.split(":")[0] for message in report.errors] == [f"pairs.jsonl, line {n}" for n in (1, 5, 9)]
    assert [record["line"] for record in read(out)] == [2, 3, 4, 6, 7, 8]


def test_a_run_is_continued_only_with_the_same_rows_and_options(tmp_path, write_jsonl, checkpoint_always):
    rows = [row(number) for number in range(6)]
    source, out = write_jsonl(rows), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        align_file(source, out, batch_size=2, watch=interrupt_after(4))
    with pytest.raises(ValueError, match=r"the options are .* they must be those of the interrupted run"):
        align_file(source, out, edit_unit="word")
    write_jsonl([row(99), *rows[1:]])
    with pytest.raises(ValueError, match="source is changed in the 4 rows"):
        align_file(source, out)
    (tmp_path / "out.jsonl.state.json").write_text("{}")
    with pytest.raises(ValueError, match="is no state of an alignment"):
        align_file(source, out)
    assert align_file(source, out, edit_unit="word", overwrite=True).resumed_pairs == 0
    assert read(out)[0]["prompt"] == "question 99"
    assert leftovers(tmp_path, source, out) == []


@pytest.mark.parametrize("kind", KINDS)
def test_chat_prompts(tmp_path, write_jsonl, kind, checkpoint_always):
    chat = [{"role": "user", "content": "hi"}]
    source, out = write_jsonl([{**row(0), "prompt": chat}, {**row(1), "prompt": chat}]), tmp_path / f"out.{kind}"
    with pytest.raises(KeyboardInterrupt):
        align_file(source, out, batch_size=1, watch=interrupt_after(1))
    align_file(source, out)
    assert [record["prompt"] for record in read(out)] == [chat, chat]


def test_mixed_prompts_need_jsonl(tmp_path, write_jsonl):
    source = write_jsonl([row(0), {**row(1), "prompt": [{"role": "user", "content": "hi"}]}])
    assert align_file(source, tmp_path / "out.jsonl").pairs == 2
    with pytest.raises(
        ValueError, match=r"line 2: field 'prompt' does not fit the column .* it must be text in every row, or messages"
    ):
        align_file(source, tmp_path / "out.parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_empty_source(tmp_path, write_jsonl, kind):
    out = tmp_path / f"out.{kind}"
    assert align_file(write_jsonl([]), out).pairs == 0
    assert read(out) == []


def test_nothing_is_overwritten_unasked(tmp_path, write_jsonl):
    source, out = write_jsonl([row(0)]), tmp_path / "out.jsonl"
    out.write_text("precious")
    with pytest.raises(FileExistsError, match="exists already"):
        align_file(source, out)
    assert out.read_text() == "precious"
    with pytest.raises(ValueError, match="the file that source reads; it must be another one"):
        align_file(source, source, overwrite=True)
    assert len(list(read_pairs(source))) == 1


def test_bad_arguments(tmp_path, write_jsonl):
    source = write_jsonl([row(0)])
    with pytest.raises(ValueError, match=r"it must end in \.jsonl or \.parquet"):
        align_file(source, tmp_path / "out.csv")
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        align_file(source, tmp_path / "out.jsonl", batch_size=0)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(ParquetWriter, "_MAX_ROWS", 200)

    def peak(count):
        source = tmp_path / f"{count}.jsonl"
        source.write_text("".join(json.dumps(row(number)) + "\n" for number in range(count)))
        tracemalloc.start()
        try:
            assert align_file(source, tmp_path / f"{count}.{kind}.{kind}", batch_size=50).pairs == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(50)  # imports
    small, large = peak(500), peak(3_000)
    assert large < small + 300_000, "six times the rows, 2 MB more in the output"


def test_long_rows_make_small_batches(tmp_path, write_jsonl, monkeypatch):
    sizes = []
    align = __import__("fgrl.data.align_file", fromlist=["ResponseAligner"]).ResponseAligner
    call = align.__call__
    monkeypatch.setattr(align, "__call__", lambda self, pairs: sizes.append(len(pairs)) or call(self, pairs))
    long = {**row(0), "original": "x" * 700_000, "edited": ""}
    align_file(write_jsonl(list(chain([row(0)] * 5, [long] * 4))), tmp_path / "out.jsonl")
    assert max(sizes) < 9
    assert sum(sizes) == 9
