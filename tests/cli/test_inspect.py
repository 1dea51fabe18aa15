"""`fgrl inspect`: the numbers it prints, its exit codes, and a page on which everything is escaped."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fgrl.cli import main

HOSTILE = "</div><script>alert(\"1\")</script> & \x1b[31m 'q' \ud800"
ROWS = [
    {"prompt": HOSTILE, "original": f"teh cat {HOSTILE}", "edited": f"the cat {HOSTILE}", "source": HOSTILE},
    {"prompt": "q", "original": "It is gren.", "edited": "It is green.", "annotator": "ana"},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{key: value.replace("\ud800", "") for key, value in row.items()} for row in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def inspect(*arguments: Any) -> int:
    return main(["inspect", *map(str, arguments), "--workers", "1"])


def test_the_page_is_closed_and_escaped(source: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert inspect(source, "--html", page) == 0
    tags: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)

    text = page.read_text(encoding="utf-8")
    Parser().feed(text)
    assert not {"script", "img", "link", "iframe"} & set(tags)
    assert "default-src 'none'" in text
    assert '<del class="removed">teh</del><ins class="added">the</ins> cat &lt;/div&gt;' in text
    assert '<del class="removed">gren</del><ins class="added">green</ins>' in text
    assert tags.count("svg") >= 4


def test_strict_exits_with_1_when_something_is_off(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(source, "--strict") == 0
    assert "  bad rows" in capsys.readouterr().out
    with open(source, "a") as file:
        file.write('{"prompt": "p"}\n')
    assert inspect(source) == 0
    assert inspect(source, "--strict") == 1
    said = capsys.readouterr()
    assert "! bad rows" in said.out
    assert "bad: rows.jsonl, line 3: field 'original' is missing" in said.err


def test_mistakes_are_one_sentence(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(source, "--html", source) == 2
    assert inspect(source, "--gguf-file", "x.gguf") == 2
    assert inspect(source, "--held-out", tmp_path / "none.jsonl") == 2
    assert inspect(source, "--model", tmp_path / "none") == 2
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_tokens_are_counted_with_a_tokenizer(
    source: Path, tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert inspect(source, "--model", tmp_path / "tokenizer", "--max-length", 2, "--strict") == 1
    assert "! edits lost by truncation" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mlqe_pe_ro_en", "mlqe_pe_ru_en"])
def test_a_report_of_post_edits(name: str, real_data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert inspect(real_data / f"{name}.jsonl", "--column", "prompt=source", "--group-by", "split", "--html", page) == 0
    assert page.read_text(encoding="utf-8").count("<del") >= 10
