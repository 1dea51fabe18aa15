"""At the door: a user's mistake is one sentence and exit code 2, whatever it is; a bug shows its traceback."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from fgrl.cli import _COMMANDS, build_parser, main

ROW = {"prompt": "p", "original": "teh cat", "edited": "the cat", "response": "a cat"}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused: its one sentence."""

    def run(*arguments: Any) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fgrl")]
        assert len(lines) == 1, lines
        return lines[0]

    return run


NUMERIC = [
    (command, action.option_strings[0], action.type)
    for command in _COMMANDS
    for action in build_parser(command)[1]._actions  # type: ignore[union-attr]
    if action.type is not None
]


def test_every_numeric_flag_says_its_range() -> None:
    assert len(NUMERIC) > 30
    for command in _COMMANDS:
        for action in build_parser(command)[1]._actions:  # type: ignore[union-attr]
            assert action.type not in (int, float), f"{command} {action.option_strings}: a type without a range"


@pytest.mark.parametrize(("command", "flag", "kind"), NUMERIC, ids=[" ".join(case[:2]) for case in NUMERIC])
def test_a_number_out_of_range_is_refused_by_its_flag(
    command: str, flag: str, kind: Callable[[str], Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    always = ["nan", "inf", "-inf", "1e400", "ten", "", "1" + "0" * 400]
    refusing = [*always, *(text for text in ("-1", "0", "2.5", "1" + "0" * 30) if not _takes(kind, text))]
    for text in refusing:
        sentence = refused(command, f"{flag}={text}")
        assert f"{flag} is " in sentence
        assert "; it must be a" in sentence
    config = tmp_path / "config.yaml"
    config.write_text(f"{flag.removeprefix('--')}: .nan\n")
    assert f"{flag.removeprefix('--')} is " in refused(command, "--config", config)
    config.write_text(f"{flag.removeprefix('--')}: null\n")
    assert "is null; it must be a value" in refused(command, "--config", config)


def _takes(kind: Callable[[str], Any], text: str) -> bool:
    try:
        kind(text)
    except argparse.ArgumentTypeError:
        return False
    return True


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "abacus", "meta", "xpu", "mps", "", "cpu:x", "-1"])
def test_a_device_that_is_not_there(device: str, source: Path, tiny_checkpoint: Path, refused: Any) -> None:
    import torch

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    sentence = refused("score", source, "--model", tiny_checkpoint, f"--device={device}")
    assert f"--device is {device!r}; it must be a device" in sentence


@pytest.fixture
def broken_model(tiny_checkpoint: Path, tmp_path: Path, tiny_tokenizer: Any) -> Path:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def _spoil(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    content = weights.read_bytes()
    if how == "pointer":
        weights.write_text(POINTER)
    elif how == "tokenizer pointer":
        (folder / "tokenizer.json").write_text(POINTER)
    elif how == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif how == "cut header":
        weights.write_bytes(content[:5])
    elif how == "empty weights":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.unlink()
    elif how == "weights are a folder":
        weights.unlink()
        weights.mkdir()
    elif how == "config garbage":
        config.write_text("{broken")
    elif how == "config list":
        config.write_text("[1, 2]")
    elif how == "config binary":
        config.write_bytes(b"\xff\xfe\x00\x01")
    elif how == "config of strings":
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": "wide"}))
    elif how == "config of other sizes":
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 24}))
    elif how == "unknown family":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "no-such-family"}))
    elif how == "no config":
        config.unlink()
    elif how == "no tokenizer":
        for path in folder.glob("*token*"):
            path.unlink()
    elif how == "tokenizer garbage":
        (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "??"}}')
    elif how == "tokenizer config garbage":
        (folder / "tokenizer_config.json").write_text("[]")
    else:
        raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    [
        "pointer",
        "tokenizer pointer",
        "truncated",
        "cut header",
        "empty weights",
        "no weights",
        "weights are a folder",
        "config garbage",
        "config list",
        "config binary",
        "config of strings",
        "config of other sizes",
        "unknown family",
        "no config",
        "no tokenizer",
        "tokenizer garbage",
        "tokenizer config garbage",
    ],
)
def test_a_model_that_is_damaged(how: str, broken_model: Path, source: Path, tmp_path: Path, refused: Any) -> None:
    _spoil(broken_model, how)
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    sentence = refused("score", source, "--model", broken_model, "--out", out, "--html", tmp_path / "page.html")
    assert sentence.startswith(f"fgrl: --model {broken_model} cannot be used: ")
    assert "pointer" not in how or "is a Git LFS pointer" in sentence
    assert out.read_text() == "precious"
    assert not (tmp_path / "page.html").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("flag", ["--ref-model", "--value-model", "--reward-model"])
def test_every_model_of_the_training_is_named_by_its_flag(
    flag: str, broken_model: Path, tiny_checkpoint: Path, source: Path, tmp_path: Path, refused: Any
) -> None:
    _spoil(broken_model, "pointer")
    options = ["--reward-function", "math:sqrt", flag, broken_model]
    sentence = refused("train-ppo", source, "--model", tiny_checkpoint, "--out", tmp_path / "out", *options)
    assert sentence.startswith(f"fgrl: {flag} {broken_model} cannot be used: ")


@pytest.mark.parametrize("command", ["align", "score", "train-reward", "train-ppo"])
@pytest.mark.parametrize("name", ["missing.jsonl", "folder.jsonl", "rows.csv", "rows", "unreadable.jsonl"])
def test_a_source_that_cannot_be_read(
    command: str, name: str, tmp_path: Path, tiny_checkpoint: Path, refused: Any
) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "rows.csv").write_text("a,b\n")
    (tmp_path / "unreadable.jsonl").write_text(json.dumps(ROW))
    (tmp_path / "unreadable.jsonl").chmod(0)
    if name == "unreadable.jsonl" and os.access(tmp_path / name, os.R_OK):
        pytest.skip("this user reads everything")
    options = {"align": ["--out", tmp_path / "out.jsonl"], "score": ["--model", tiny_checkpoint]}
    training = ["--model", tiny_checkpoint, "--out", tmp_path / "out", "--cpu"]
    options |= {"train-reward": training, "train-ppo": [*training, "--reward-function", "math:sqrt"]}
    assert str(name) in refused(command, tmp_path / name, *options[command])


@pytest.mark.parametrize("out", ["source", "folder", "file/below", "long"])
@pytest.mark.parametrize("option", ["--out", "--html"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    out: str, option: str, source: Path, tmp_path: Path, refused: Any
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    places = {"source": source, "long": tmp_path / ("n" * 300)}
    content = source.read_bytes()
    assert option in refused("score", source, "--model", "no/such-model", option, places.get(out, tmp_path / out))
    assert source.read_bytes() == content
    assert not list(tmp_path.glob(".*"))


def test_the_folder_of_a_model_is_no_output(tiny_checkpoint: Path, source: Path, refused: Any) -> None:
    options = ["--model", tiny_checkpoint, "--out", f"{tiny_checkpoint}/.", "--overwrite"]
    assert "the file that --model reads" in refused("train-reward", source, *options)


def test_the_output_of_a_mistyped_model_stays(source: Path, tmp_path: Path, refused: Any) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    refused("score", source, "--model", tmp_path / "mistyped", "--out", out)
    refused("align", source, "--tokenizer", tmp_path / "mistyped", "--out", out, "--overwrite")
    assert out.read_text() == "precious"


@pytest.mark.parametrize("error", [ValueError, RuntimeError, OSError, TypeError, KeyError, ImportError, IndexError])
def test_a_bug_is_raised(error: type[Exception], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*args: Any, **kwargs: Any) -> None:
        raise error("inside a library")

    monkeypatch.setattr("fgrl.data.aligner.align_edits", bug)
    with pytest.raises(error, match="inside a library"):
        main(["align", str(source), "--out", str(tmp_path / "out.jsonl")])


@pytest.mark.parametrize("loading", ["fgrl.models.load_tokenizer", "fgrl.models.TokenRewardModel.from_pretrained"])
def test_a_mistake_of_ours_while_loading_is_a_bug(
    loading: str, source: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong index in this package, where a library's error would say that the model cannot be used."""
    ours: dict[str, Any] = {"__name__": "fgrl.models.loading"}
    exec("def load(*args, **options):\n    return [][1]", ours)
    monkeypatch.setattr(loading, ours["load"])
    with pytest.raises(IndexError):
        main(["score", str(source), "--model", str(tiny_checkpoint)])


def test_traceback_shows_where_a_mistake_was_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main(["align", str(tmp_path / "no.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--traceback"])


def _command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "fgrl.cli", *map(str, arguments)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(_command("doctor"), stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "fgrl: the output cannot be used: No space left on device\n")


def test_a_pipe_that_nobody_reads_is_silent() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(_command("doctor"), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("encoding", ["ascii", "utf-16"])
def test_a_console_of_another_encoding_shows_escapes(encoding: str, tmp_path: Path) -> None:
    name = "ünï-ไทย-\udcff.jsonl"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    arguments = _command("align", tmp_path / name, "--out", tmp_path / "out.jsonl")
    done = subprocess.run(arguments, env=environment, capture_output=True)
    assert done.returncode == 2
    assert "is not a file" in done.stderr.decode(encoding)


def _with_signals() -> None:
    """In the child: `nohup`, and a shell that puts a job into the background, have children ignore these two."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def test_an_interrupt_is_one_line(tmp_path: Path) -> None:
    fifo = tmp_path / "pairs.yaml"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        _command("doctor", "--config", fifo), stderr=subprocess.PIPE, text=True, preexec_fn=_with_signals
    )
    with open(fifo, "w"):  # opens once the command reads its configuration
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "fgrl: interrupted\n")


_STUCK = """
import os, signal, sys
from fgrl.cli import doctor, main
from fgrl.data.output import open_output

def stuck(args):
    with open_output(sys.argv[1]) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), int(sys.argv[2]))
        signal.pause()

doctor.run = stuck
raise SystemExit(main(["doctor"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_leaves_the_old_output_and_no_draft(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    command = [sys.executable, "-c", _STUCK, out, str(int(number))]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, preexec_fn=_with_signals)
    assert (done.returncode, done.stderr, out.read_text()) == (128 + number, "", "old")
    assert list(tmp_path.iterdir()) == [out]
