"""`fgrl score`: what it prints, the JSON lines and the page, on pairs and on single responses."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from fgrl.cli import main
from fgrl.cli._scoring import ScoredRow, ScoredSide, token_pieces
from fgrl.cli.score import printable
from fgrl.cli.score_html import render
from fgrl.models import TokenHead, TokenRewardModel

HOSTILE = '<script>alert("1")</script> & \x1b[31m "quotes" \'single\' </div>'
ROWS = [
    {
        "prompt": "where is the <b>cat</b>",
        "original": "teh cat sat on a matt",
        "edited": "the cat sat on a mat",
        "error_spans": [{"start": 0, "end": 3}],
    },
    {"prompt": [{"role": "user", "content": "hi & bye"}], "original": "red sky", "edited": "blue sky"},
    {"prompt": "q", "original": "green tree", "edited": "green tree"},
]


@pytest.fixture
def reward_model(tiny_checkpoint: Path, tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """Folder of a tiny reward model with a random head."""
    model = TokenRewardModel.from_pretrained(tiny_checkpoint)
    head = next(module for module in model.modules() if isinstance(module, TokenHead))
    torch.nn.init.normal_(head.weight)
    model.save_pretrained(tmp_path / "reward")
    tiny_tokenizer.save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def score(*arguments: Any) -> int:
    return main(["score", *map(str, arguments), "--device", "cpu"])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_json_lines_hold_the_rewards_of_the_model(
    batch_size: int, reward_model: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    source, out = write(tmp_path / "pairs.jsonl", ROWS), tmp_path / "scores.jsonl"
    assert score(source, "--model", reward_model, "--out", out, "--batch-size", batch_size) == 0
    first, second, third = records(out)
    assert [first["line"], second["line"], third["line"]] == [1, 2, 3]
    assert "".join(first["original"]["tokens"]) == ROWS[0]["original"] + "</s>"
    assert "".join(first["edited"]["tokens"]) == ROWS[0]["edited"] + "</s>"

    model = TokenRewardModel.from_pretrained(reward_model)
    prompt = tiny_tokenizer(ROWS[0]["prompt"]).input_ids
    response = tiny_tokenizer(ROWS[0]["original"]).input_ids
    with torch.no_grad():
        expected = model(torch.tensor([[*prompt, *response, tiny_tokenizer.eos_token_id]]))[0, len(prompt) :]
    assert first["original"]["rewards"] == pytest.approx(expected.tolist(), abs=1e-5)

    changed = [
        token for token, edit in zip(first["original"]["tokens"], first["original"]["edits"], strict=True) if edit
    ]
    assert "sat" not in "".join(changed)
    assert any(first["original"]["errors"])
    assert "errors" not in second["original"]
    sides = {
        name: sum(r for r, e in zip(first[name]["rewards"], first[name]["edits"], strict=True) if e)
        for name in ("original", "edited")
    }
    assert first["margin"] == pytest.approx(sides["edited"] - sides["original"])
    assert third["margin"] == 0


def test_metrics_are_those_of_the_trainer(
    reward_model: Path, tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from fgrl.trainer import TokenRewardConfig, TokenRewardTrainer

    source = write(tmp_path / "pairs.jsonl", ROWS)
    assert score(source, "--model", reward_model, "--out", tmp_path / "scores.jsonl") == 0
    summary = capsys.readouterr().err
    shown = {parts[0]: float(parts[1]) for line in summary.splitlines() if len(parts := line.split()) == 2}
    config = TokenRewardConfig(str(tmp_path / "out"), use_cpu=True, report_to="none", disable_tqdm=True)
    metrics = TokenRewardTrainer(
        str(reward_model), config, eval_dataset=str(source), processing_class=tiny_tokenizer
    ).evaluate()
    for name in ("pairs", "pairs_without_edits", "pair_accuracy", "margin", "edit_auc", "span_auc"):
        assert shown[name] == pytest.approx(metrics[f"eval_{name}"], abs=1e-3), name


class Page(HTMLParser):
    """Tags, attributes and token texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tokens: list[tuple[set[str], str]] = []
        self.prompts: list[str] = []
        self._into: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        classes = set((dict(attrs).get("class") or "").split())
        self._into = "token" if "t" in classes else "prompt" if "prompt" in classes else None
        if self._into == "token":
            self.tokens.append((classes - {"t"}, ""))
        elif self._into == "prompt":
            self.prompts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._into = None

    def handle_data(self, data: str) -> None:
        if self._into == "token":
            self.tokens[-1] = (self.tokens[-1][0], self.tokens[-1][1] + data)
        elif self._into == "prompt":
            self.prompts[-1] += data


def test_page_shows_tokens_edits_and_human_spans(reward_model: Path, tmp_path: Path) -> None:
    source, html = write(tmp_path / "pairs.jsonl", ROWS), tmp_path / "page.html"
    assert score(source, "--model", reward_model, "--html", html, "--out", tmp_path / "scores.jsonl") == 0
    page = Page(html.read_text(encoding="utf-8"))
    scored = records(tmp_path / "scores.jsonl")
    sides = [(row[name], edit) for row in scored for name, edit in (("original", "removed"), ("edited", "added"))]
    assert [text for _, text in page.tokens] == [token for side, _ in sides for token in side["tokens"]]
    expected = [
        {edit for edit, there in ((name, changed), ("error", wrong)) if there}
        for side, name in sides
        for changed, wrong in zip(side["edits"], side.get("errors") or [False] * len(side["edits"]), strict=True)
    ]
    assert [classes for classes, _ in page.tokens] == expected
    assert page.prompts == ["where is the <b>cat</b>", "user: hi & bye", "q"]


def test_page_is_self_contained_and_everything_in_it_is_escaped(reward_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": HOSTILE, "original": HOSTILE, "edited": HOSTILE.replace("alert", "b\u202ealert")}]
    source, html = write(tmp_path / "pairs.jsonl", rows), tmp_path / "page.html"
    assert score(source, "--model", reward_model, "--html", html) == 0
    text = html.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert not {"src", "href", "onclick", "srcset"} & {name for name, _ in page.attributes}
    assert "url(" not in text
    assert "@import" not in text
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.prompts == [HOSTILE]
    assert "".join(token for _, token in page.tokens).startswith(HOSTILE)


def test_page_escapes_the_name_of_the_model() -> None:
    page = Page(render([], model='<img src="x" onerror="y">', total=0))
    assert "img" not in page.tags


def test_page_colours_by_sign_and_size() -> None:
    side = ScoredSide(["a", "b", "c", "d"], [-4.0, 2.0, 0.0, 100.0])
    text = render([ScoredRow(1, "", side, None)], model="m", total=7)
    styles = [value for name, value in Page(text).attributes if name == "style"][1:]
    assert styles == [
        "background:rgba(200,50,40,0.750)",
        "background:rgba(30,100,200,0.375)",
        "background:rgba(200,50,40,0.000)",
        "background:rgba(30,100,200,0.750)",
    ]
    assert "the first 1 of 7 rows" in text


def test_page_is_cut_but_the_json_lines_are_not(reward_model: Path, tmp_path: Path) -> None:
    source, html, out = write(tmp_path / "p.jsonl", ROWS), tmp_path / "page.html", tmp_path / "s.jsonl"
    assert score(source, "--model", reward_model, "--html", html, "--html-rows", 1, "--out", out) == 0
    assert "the first 1 of 3 rows" in html.read_text(encoding="utf-8")
    assert len(records(out)) == 3


def test_one_text_on_the_terminal(reward_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score("--model", reward_model, "--prompt", "where", "--text", "the cat\n\x1b[2Jsat") == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out
    assert "\\x1b" in shown.out
    lines = [line.split() for line in shown.out.splitlines()[2:]]
    assert all(float(parts[0]) or True for parts in lines)
    assert "scored 1 rows" in shown.err


def test_responses_alone_need_no_edit(reward_model: Path, tmp_path: Path) -> None:
    rows = [{"question": "who", "response": "the dog"}, {"answer": "a cat"}]
    source, out = write(tmp_path / "responses.jsonl", rows), tmp_path / "scores.jsonl"
    assert score(source, "--model", reward_model, "--out", out, "--column", "response=response", "--limit", 1) == 0
    (record,) = records(out)
    assert set(record) == {"line", "prompt", "response"}
    assert set(record["response"]) == {"tokens", "rewards"}
    assert score(source, "--model", reward_model, "--out", "-") == 0


def test_bad_rows_stop_it_or_are_counted(
    reward_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "rows.jsonl", [ROWS[0], {"prompt": "nothing else"}, ROWS[1]])
    assert score(source, "--model", reward_model) == 2
    assert (
        "line 2: field 'response' is missing; it must be one of the row's, which are 'prompt'"
        in capsys.readouterr().err
    )
    assert score(source, "--model", reward_model, "--on-error", "skip") == 0
    shown = capsys.readouterr().err
    assert "scored 2 rows" in shown
    assert "skipped 1 bad rows" in shown


def test_a_model_without_a_head_is_said(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score("--model", tiny_checkpoint, "--text", "the cat") == 0
    assert "has no reward head" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "it must be either a file or --text"),
        (["file.jsonl", "--text", "a"], "it must be either a file or --text"),
        (["file.jsonl", "--prompt", "a"], "it must come with --text"),
        (["--text", "a", "--batch-size", "0"], "--batch-size is 0; it must be a whole number of at least 1"),
        (["--text", "a", "--column", "prompt"], "--column is 'prompt'; it must be FIELD=NAME"),
        (["--text", "a", "--model", "/nowhere"], "cannot be used"),
        (["--text", "a", "--tokenizer", "/nowhere"], "--tokenizer /nowhere cannot be used"),
    ],
)
def test_command_lines_that_cannot_be_used(
    arguments: list[str],
    message: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "file.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert score("--model", tiny_checkpoint, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["the cat sat", " leading", "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600!", "", "\n\n a\tb", "\ufffd odd"]
)
def test_pieces_add_up_to_the_text(text: str, tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer(text).input_ids
    pieces = token_pieces(tiny_tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_pieces_of_a_cut_character_keep_their_place(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer("a\u65e5").input_ids[:-1]  # the last byte of the character is missing
    pieces = token_pieces(tiny_tokenizer, ids)
    assert pieces[0] == "a"
    assert set("".join(pieces[1:])) == {"\ufffd"}


def test_printable_writes_control_characters_out() -> None:
    assert printable("a b\n\x1b\u202e\u00e9") == "a b\\n\\x1b\\u202e\u00e9"


def test_rows_that_cannot_be_encoded_are_counted_too(
    reward_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Messages that the chat template refuses, and text that is no Unicode."""
    (reward_model / "chat_template.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}hi"
    )
    refused = {"prompt": [{"role": "system", "content": "x"}], "response": "a cat"}
    rows = [ROWS[2], refused, {"response": "\ud800"}, ROWS[2]]
    source, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    assert score(source, "--model", reward_model, "--out", out, "--batch-size", 1) == 2
    assert "line 2: field 'prompt' is refused by the chat template" in capsys.readouterr().err
    assert not out.exists()
    assert score(source, "--model", reward_model, "--out", out, "--on-error", "skip") == 0
    assert [record["line"] for record in records(out)] == [1, 4]
    assert "scored 2 rows" in (shown := capsys.readouterr().err)
    assert "skipped 2 bad rows" in shown
