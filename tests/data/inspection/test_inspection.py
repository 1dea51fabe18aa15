"""An inspection counts what is there, whatever the batch size and the number of workers, at constant memory."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fgrl
from fgrl.data.hunks import hunks, hunks_of_texts
from fgrl.data.inspection import Summary, findings, inspect_edits, run
from fgrl.data.inspection.sketches import FrequentItems, SeenBefore
from fgrl.data.inspection.summary import Agreement

PAIR = {"prompt": "p", "original": "It is gren .", "edited": "It is blue ."}


def rows_with(**changes: Any) -> list[dict[str, Any]]:
    """A hundred sound rows, and one with these changes."""
    sound = [
        {"prompt": f"p {n}", "original": f"word{n} is a gren thing", "edited": f"word{n} is a green thing"}
        for n in range(100)
    ]
    return [*sound, {**PAIR, **changes}]


def off(summary: Summary) -> set[str]:
    return {finding.name.partition(" (")[0] for finding in findings(summary) if finding.off}


def test_sound_rows_have_no_finding() -> None:
    summary = inspect_edits(rows_with())
    assert not off(summary)
    assert (summary.rows, summary.unchanged, summary.hunks) == (101, 0, Counter({1: 101}))
    assert summary.all.mean_share == pytest.approx((100 / 5 + 1 / 4) / 101)
    assert summary.frequent == [(("gren", "green"), 100), (("gren", "blue"), 1)]


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([*rows_with(), {"prompt": "p"}], "bad rows"),
        ([*rows_with(), {"prompt": "p", "original": 3, "edited": ""}], "bad rows"),
        ([], "no rows at all"),
        ([{**PAIR, "edited": PAIR["original"]}], "pairs without change"),
        ([{**PAIR, "edited": "No, the sky has another colour"}], "rewrites"),
        ([{**PAIR, "edited": ""}], "responses emptied"),
        ([PAIR, PAIR], "duplicates"),
        ([PAIR, {**PAIR, "edited": "It is Blue!"}], "near duplicates"),
    ],
)
def test_what_is_off_is_found(rows: list[dict[str, Any]], name: str) -> None:
    assert name in off(inspect_edits(rows))


def test_a_prompt_that_is_held_out_is_found_whatever_its_form() -> None:
    turns = [{"role": "user", "content": "Sky?"}]
    rows = [{**PAIR, "prompt": turns}, {**PAIR, "prompt": "Sea?"}, {**PAIR, "prompt": "Sun?"}]
    summary = inspect_edits(rows, held_out=[{"prompt": turns}, {"question": "Sun?"}])
    assert (summary.leaked, summary.examples["held-out prompts"]) == (2, [1, 3])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch", [1, 7, 512])
def test_batches_and_workers_change_nothing(
    batch: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    path = tmp_path / "rows.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for n in range(300):
            words = rng.choices(["the", "a", "cat", "sat", "on", "mat", "é", "ünder"], k=rng.randint(0, 12))
            edited = [rng.choice("xyz") if rng.random() < 0.2 else word for word in words]
            row = {"prompt": f"p{n // 3}", "original": " ".join(words), "edited": " ".join(edited)}
            file.write(json.dumps({**row, "annotator": "ab"[n % 2], "source": f"s{n % 5}"}) + "\n")
            if n % 50 == 0:
                file.write("{broken\n")
    whole = inspect_edits(path)
    monkeypatch.setattr(run, "_BATCH", batch)
    parts = inspect_edits(path, workers=workers)
    assert parts == whole
    assert (whole.rows, whole.bad, len(whole.groups), len(whole.errors)) == (300, 6, 7, 6)
    assert "line 2: the line is not valid JSON" in whole.errors[0]


def test_the_strangest_rows_are_kept_in_order() -> None:
    rows = rows_with(original="a b c d e f", edited="u v w x y z")
    rows.insert(7, {"prompt": "p", "original": "", "edited": "all of it"})
    summary = inspect_edits(rows)
    assert [row.line for row in summary.strange[:2]] == [8, 102]
    assert len(summary.strange) == 10
    assert summary.strange[0].why == "one side is empty"


def test_annotators_are_compared_on_words() -> None:
    original = "a b c d e f g h"
    rows = [
        {"prompt": "p", "original": original, "edited": edited, "annotator": name}
        for name, edited in (("x", "A b c d e f g h"), ("y", "A B c d e f g h"), ("x", "ignored the second time"))
    ]
    rows.append({"prompt": "q", "original": original, "edited": "b", "annotator": "x"})  # nobody else saw it
    agreement = inspect_edits(rows).agreement
    assert agreement is not None
    assert (agreement.responses, agreement.both, agreement.one, agreement.neither) == (1, 1, 1, 6)
    assert agreement.f1 == pytest.approx(2 / 3)
    assert agreement.kappa == pytest.approx((7 / 8 - (1 / 8 * 2 / 8 + 7 / 8 * 6 / 8)) / (1 - (2 / 64 + 42 / 64)))
    assert Agreement().kappa == 1.0


def test_tokens_widen_edits_and_truncation_loses_them(byte_bpe: Any) -> None:
    rows = [{"prompt": "the cat", "original": "the cat sat on the mat", "edited": "the cat sat on the mats"}]
    counts = inspect_edits(rows, tokenizer=byte_bpe).tokens
    assert counts is not None
    assert counts.edited_characters == 1
    assert counts.edited_token_characters >= 1
    assert (counts.responses_cut, counts.edits_lost, counts.prompts_cut) == (0, 0, 0)
    cut = inspect_edits(rows, tokenizer=byte_bpe, max_length=3)
    assert cut.tokens is not None
    assert (cut.tokens.responses_cut, cut.tokens.edits_lost, cut.tokens.prompts_cut) == (1, 1, 1)
    assert cut.tokens.edits_cut == counts.edited_tokens
    assert {"responses cut by truncation", "edits lost by truncation"} <= off(cut)


def test_memory_does_not_grow_with_the_rows() -> None:
    """What is kept after many different rows is as large as after few: nothing holds one entry a row."""

    def sizes(count: int) -> dict[str, int]:
        rows = (
            {"prompt": f"p{n}", "original": f"a{n} b", "edited": f"a{n} c{n}", "annotator": f"a{n}", "source": f"s{n}"}
            for n in range(count)
        )
        kept = vars(inspect_edits(rows))
        return {name: len(value) for name, value in kept.items() if hasattr(value, "__len__")}

    few, many = sizes(3000), sizes(12000)
    assert many == few
    assert many["groups"] <= 2 * 65


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_a_key_that_was_added_is_always_seen(keys: list[int], others: list[int]) -> None:
    table = SeenBefore(1 << 16)
    for key in keys:
        table.add(key)
    assert all(key in table and table.add(key) for key in keys)
    assert sum(key in table for key in others if key not in keys) <= 1


def test_new_keys_are_seldom_taken_for_old_ones() -> None:
    rng = random.Random(0)
    table = SeenBefore(1 << 20)
    assert sum(table.add(rng.getrandbits(64)) for _ in range(8000)) <= 1  # as 10^6 keys in 2^27 bits


def test_frequent_items_are_never_lost() -> None:
    rng = random.Random(0)
    items = FrequentItems(capacity=20)
    true: Counter[tuple[str, str]] = Counter()
    for _ in range(300):
        some = Counter((str(rng.choice([0, 1, 2, rng.randrange(10**6)])), "x") for _ in range(20))
        true.update(some)
        items.update(some)
    for (item, count), expected in zip(items.most_common(3), true.most_common(3), strict=True):
        assert item == expected[0]
        assert expected[1] - items.error <= count <= expected[1]
    assert len(items.counts) <= 40


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_hunks_are_the_opcodes_that_are_not_equal(original: list[int], edited: list[int]) -> None:
    alignment = fgrl.align_edits([original], [edited])
    labels = bytes(alignment.original_ops.tolist()), bytes(alignment.edited_ops.tolist())
    assert hunks(*labels) == [tuple(code[1:]) for code in alignment.opcodes(0) if code.tag != "equal"]


TEXTS = st.text(alphabet="ab .\n\té'1", max_size=12)


@given(TEXTS, TEXTS)
def test_hunks_of_texts_make_the_edit(original: str, edited: str) -> None:
    result, at = "", 0
    for i1, i2, j1, j2 in hunks_of_texts(original, edited):
        result += original[at:i1] + edited[j1:j2]
        at = i2
    assert result + original[at:] == edited


@pytest.mark.parametrize("name", ["mlqe_pe_ro_en", "mlqe_pe_ru_en", "defacto", "qa_feedback_edits"])
def test_edits_of_people(name: str, real_data: Path) -> None:
    columns = {"mlqe_pe_ro_en": "source", "mlqe_pe_ru_en": "source", "defacto": "article"}.get(name, "question")
    summary = inspect_edits(real_data / f"{name}.jsonl", columns={"prompt": columns}, group_by=["split"])
    raw = [json.loads(line) for line in (real_data / f"{name}.jsonl").read_bytes().splitlines()]
    assert (summary.rows, summary.bad) == (len(raw), 0)
    assert summary.unchanged == sum(row["original"] == row["edited"] for row in raw)
    assert sum(summary.all.shares.values()) == len(raw)
    if name == "qa_feedback_edits":  # "not small: about half of the words change"
        assert "rewrites" in off(summary)
