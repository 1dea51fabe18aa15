from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fgrl.cli import main

REAL_EDITS = Path(__file__).resolve().parents[3] / "shared" / "data" / "qa_feedback_edits.jsonl"


def row(number):
    return {"prompt": f"p{number}", "original": f"teh cat {number}", "edited": f"the cat {number}"}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(5)))
    return path


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_aligns_and_reports(source, tmp_path, capsys):
    out = tmp_path / "deep" / "out.jsonl"
    assert main(["align", str(source), "--out", str(out)]) == 0
    assert [record["distance"] for record in records(out)] == [1] * 5
    printed = capsys.readouterr().out
    assert "5 pairs, 30 tokens; 0 bad rows skipped" in printed
    assert "pairs/s" in printed
    assert "tokens/s" in printed


def test_bad_row_exits_with_2_and_the_next_run_continues(source, tmp_path, capsys):
    lines = source.read_bytes().splitlines(keepends=True)
    source.write_bytes(b"".join([*lines[:3], b'{"prompt": "p", "original": 3, "edited": ""}\n', *lines[3:]]))
    out = tmp_path / "out.jsonl"
    command = ["align", str(source), "--out", str(out)]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "pairs.jsonl, line 4: field 'original' is of type int; it must be text" in message
    assert main([*command, "--on-error", "skip"]) == 0
    captured = capsys.readouterr()
    assert "5 pairs, 30 tokens, 3 of them by earlier runs; 1 bad rows skipped" in captured.out
    assert "continuing after row 3" in captured.err
    assert "skipped: pairs.jsonl, line 4" in captured.err
    assert [record["line"] for record in records(out)] == [1, 2, 3, 5, 6]


@pytest.mark.parametrize(
    "options",
    [
        ["--out", "OUT", "--column", "prompt"],
        ["--out", "OUT", "--batch-size", "0"],
        ["--out", "OUT", "--gguf-file", "x.gguf"],
        ["--out", "SOURCE"],
    ],
    ids=["column without a name", "batch size", "gguf without tokenizer", "existing output"],
)
def test_usage_errors_exit_with_2(source, tmp_path, options, capsys):
    places = {"OUT": str(tmp_path / "out.jsonl"), "SOURCE": str(source)}
    assert main(["align", str(source), *(places.get(option, option) for option in options)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert len(records(source)) == 5


def test_a_missing_file_and_an_unknown_suffix_are_failures(tmp_path, capsys):
    assert main(["align", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out.jsonl")]) != 0
    assert "none.jsonl" in capsys.readouterr().err
    assert main(["align", str(tmp_path / "none.csv"), "--out", str(tmp_path / "out.jsonl")]) != 0


def test_columns_overwrite_and_config(source, tmp_path):
    source.write_text(json.dumps({"ask": "p", "original": "a", "edited": "b"}) + "\n")
    out, config = tmp_path / "out.jsonl", tmp_path / "align.yaml"
    out.write_text("old")
    config.write_text("column: [prompt=ask]\noverwrite: true\nedit-unit: word\n")
    assert main(["align", str(source), "--out", str(out), "--config", str(config)]) == 0
    assert records(out)[0]["prompt"] == "p"


def test_tokenizer_by_folder(source, tmp_path, capsys):
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["the cat"], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "out.jsonl"
    assert main(["align", str(source), "--out", str(out), "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    assert records(out)[0]["original_ids"] == backend.encode("teh cat 0").ids
    assert main(["align", str(source), "--out", str(out), "--overwrite", "--tokenizer", str(tmp_path / "no")]) == 2
    assert "--tokenizer" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_killed_at_any_moment_and_continued(tmp_path, kind):
    """SIGKILL again and again: whatever the moment, the finished output has every row once, in order."""
    count = 4_000
    source, out = tmp_path / "pairs.jsonl", tmp_path / f"out.{kind}"
    source.write_text("".join(json.dumps(row(number)) + "\n" for number in range(count)))
    program = (
        "import sys; from fgrl.data import writers; from fgrl.cli import main\n"
        "writers.JsonlWriter.interval = 0.05; writers.ParquetWriter.interval = 0.1\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "align", str(source), "--out", str(out), "--batch-size", "20"]
    kills = 0
    for attempt in range(5):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        state = tmp_path / f"{out.name}.state.json"
        before = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(0.03 * (attempt % 4))
        if process.poll() is None and attempt < 4:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        if out.exists():  # killed while it went home
            break
        assert process.returncode == -signal.SIGKILL, errors
    assert kills >= 2, "the run was too short to be killed"
    if kind == "parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(out)
        lines, prompts = table["line"].to_pylist(), table["prompt"].to_pylist()
    else:
        lines, prompts = ([record[name] for record in records(out)] for name in ("line", "prompt"))
    assert lines == list(range(1, count + 1))
    assert prompts == [f"p{number}" for number in range(count)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["pairs.jsonl", out.name])


@pytest.mark.skipif(not REAL_EDITS.exists(), reason="the real edits are not here")
def test_real_edits(tmp_path):
    out = tmp_path / "out.jsonl"
    assert main(["align", str(REAL_EDITS), "--out", str(out)]) == 0
    aligned = records(out)
    assert len(aligned) == 350
    for record in aligned:
        built = []
        for tag, i1, i2, j1, j2 in record["opcodes"]:
            built += record["original_tokens"][i1:i2] if tag == "equal" else record["edited_tokens"][j1:j2]
        assert built == record["edited_tokens"]
