"""Output files appear whole or not at all, and never in place of what is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fgrl.data.output import check_outputs, json_line, open_output, open_output_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_run_that_fails_changes_nothing(tmp_path: Path, before: str | None, error: type[BaseException]) -> None:
    out = tmp_path / "out.txt"
    if before is not None:
        out.write_text(before)
    with pytest.raises(error), open_output(out) as file:  # noqa: PT012
        file.write(b"half of it")
        file.flush()
        raise error
    assert (out.read_text() if out.exists() else None) == before
    assert names(tmp_path) == ([] if before is None else ["out.txt"])


def test_killed_in_the_middle_it_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    out.write_text("old")
    program = (
        "import os, signal, sys; from fgrl.data.output import open_output\n"
        "with open_output(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(out)]).returncode == -9
    assert out.read_text() == "old"


def test_replaces_the_file_and_keeps_links_and_permissions(tmp_path: Path) -> None:
    real, link = tmp_path / "deep" / "real.txt", tmp_path / "link.txt"
    write_text(real, "old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_text(link, "new \ud800")
    assert real.read_text() == "new \\ud800"
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert names(real.parent) == ["real.txt"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        with pytest.raises(OSError) as caught, open_output(path):
            raise AssertionError("the work began")
        assert caught.value.filename == str(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), open_output("/dev/full") as file:
        file.write(b"x")


def test_a_pipe_and_standard_output_are_written_directly(tmp_path: Path) -> None:
    fifo, copy = tmp_path / "fifo", tmp_path / "copy"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["sh", "-c", 'cat < "$0" > "$1"', str(fifo), str(copy)])
    write_text(fifo, "through")
    assert reader.wait() == 0
    assert copy.read_text() == "through"
    program = (
        "import sys; from fgrl.data.output import write_text\n"
        "print('before'); write_text(sys.argv[1], 'text\\n'); print('after')"
    )
    for path in ("-", "/dev/stdout", str(tmp_path / "log")):
        with open(tmp_path / "log", "wb") as log:
            subprocess.run([sys.executable, "-c", program, path], stdout=log, check=True)
        assert (tmp_path / "log").read_text() == "before\ntext\nafter\n"


def test_a_folder_moves_in_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "model").mkdir(parents=True)
    (out / "model" / "stale").write_text("old")
    (out / "swapped").mkdir()
    (out / "report").write_text("old")
    (out / "mine").write_text("mine")
    with pytest.raises(ValueError), open_output_folder(out) as draft:  # noqa: PT012
        (draft / "report").write_text("new")
        raise ValueError
    assert (out / "report").read_text() == "old"
    assert names(tmp_path) == ["out"]
    with open_output_folder(out) as draft:
        (draft / "report").write_text("new")
        (draft / "swapped").write_text("a file now")
        (draft / "model").mkdir()
        (draft / "model" / "weights").write_text("new")
    assert names(out) == ["mine", "model", "report", "swapped"]
    assert names(out / "model") == ["weights"]
    assert (out / "report").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_an_input_is_no_output_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("")
    (tmp_path / "soft.jsonl").symlink_to(source)
    os.link(source, tmp_path / "hard.jsonl")
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for spelling in ("a.jsonl", "./a.jsonl", "folder/a.jsonl", "soft.jsonl", "hard.jsonl", source):
        with pytest.raises(ValueError, match=r"^--out is .*, the file that source reads; it must be another one$"):
            check_outputs({"--out": spelling, "--html": None}, {"source": source, "--config": None})
    with pytest.raises(ValueError, match=r"--html is new, the same as --out; it must be another file"):
        check_outputs({"--out": "./new", "--html": "new"}, {})
    check_outputs({"--out": "/dev/null", "--html": "/dev/null"}, {"source": "/dev/null", "--model": "org/name"})


def test_a_file_of_a_folder_that_is_read_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    (model / "tokenizer").mkdir(parents=True)
    for name in ("config.json", "tokenizer/vocab.json"):
        (model / name).write_text("{}")
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "weights").symlink_to(model / "config.json")
    monkeypatch.chdir(model)
    spellings = (model / "config.json", "tokenizer/vocab.json", tmp_path / "link/config.json", tmp_path / "weights")
    for spelling in spellings:
        with pytest.raises(ValueError, match=r"^--out is .*, a file of the folder that --model reads; it must be a "):
            check_outputs({"--out": spelling}, {"--model": tmp_path / "link"})
    check_outputs({"--out": model / "scores.jsonl", "--html": tmp_path / "model.html"}, {"--model": model})


def test_a_line_of_json_holds_any_text() -> None:
    assert json_line({"a": "é"}) == '{"a":"é"}\n'.encode()
    assert json_line({"a": "é\ud800"}) == b'{"a":"\\u00e9\\ud800"}\n'
