"""Answers that are kept, repaired or rejected, with the reason the editor is given."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrl.data.hunks import hunks_of_texts
from fgrl.edits import Answer, Rejected, check_edit
from fgrl.edits.checks import apply_hunks, restore_format

RESPONSE = "It is gren, and gren again."


def replacements(*some: object, wrong: str = "colour") -> str:
    return json.dumps({"wrong": wrong, "replacements": some})


def kept(text: str, response: str = RESPONSE, mode: str = "replacements", share: float = 0.5) -> str:
    return check_edit(Answer(text), response, mode=mode, max_edit_share=share).edited  # type: ignore[arg-type]


BLUE = {"find": "gren", "replace": "blue", "occurrence": 2}


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        (replacements(BLUE), "It is gren, and blue again."),
        (f"Sure!\n```json\n{replacements(BLUE)}\n```", "It is gren, and blue again."),
        ("Here: " + replacements(BLUE) + " Done.", "It is gren, and blue again."),
        (replacements({"find": "It", "replace": "Sky"}, {**BLUE, "occurrence": 1}), "Sky is blue, and gren again."),
        (replacements(wrong=""), RESPONSE),
        (replacements(wrong=" Nothing "), RESPONSE),
        (
            replacements({"find": "again.", "replace": "again. {x} $guideline"}),
            "It is gren, and gren again. {x} $guideline",
        ),
    ],
)
def test_replacements_are_applied(text: str, edited: str) -> None:
    assert kept(text, share=0.9) == edited


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no json", "no JSON"),
        ('{"wrong": "x", "replacements": [{"find": "gr', "no JSON"),
        ("[1]", "but no object"),
        ('{"wrong": 3, "replacements": []}', "no 'wrong' that is text"),
        ('{"wrong": "x", "replacements": {}}', "no 'replacements' that is a list"),
        (replacements("gren"), r"replacements\[0\] is no object"),
        (replacements({"find": "gren", "replace": None}), r"replacements\[0\] is no object"),
        (replacements({"find": "", "replace": "x"}), "find is empty"),
        (replacements({"find": "green", "replace": "x"}), "does not have"),
        (replacements({"find": "gren", "replace": "x"}), "occurs 2 times"),
        (replacements({**BLUE, "occurrence": 3}), "from 1 to 2"),
        (replacements({**BLUE, "occurrence": 0}), "from 1 to 2"),
        (replacements({**BLUE, "occurrence": True}), "from 1 to 2"),
        (replacements({**BLUE, "occurrence": "2"}), "from 1 to 2"),
        (replacements(BLUE, {"find": "and gren", "replace": "x"}), "overlap"),
        (replacements({"find": "It", "replace": "It"}), "changes nothing"),
        (replacements(BLUE, wrong=""), "says that nothing is wrong"),
        (
            replacements({"find": RESPONSE, "replace": "Something else altogether"}),
            "of the words; it must change at most",
        ),
        (replacements({"find": RESPONSE, "replace": ""}), "leaves nothing"),
        (replacements({"find": "It", "replace": "\ud800"}), "surrogate"),
    ],
)
def test_bad_replacements_are_rejected(text: str, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        kept(text)


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("WRONG: colour\nTEXT:\n\nIt is blue, and gren again.\n", "  It is blue, and gren again.\n\n"),
        ("WRONG: colour\nTEXT: It is blue, and gren again.", "  It is blue, and gren again.\n\n"),
        ("WRONG: x\nTEXT:\n```\nIt is blue, and gren again.\n```", "  It is blue, and gren again.\n\n"),
        ("WRONG: nothing\nTEXT:\nIt is gren, and gren again.", "  It is gren, and gren again.\n\n"),
        ("WRONG: x\nTEXT:\nIt is blue, and gren again. TEXT:\nx", "  It is blue, and gren again. TEXT:\nx\n\n"),
    ],
)
def test_a_whole_text_is_taken_with_the_white_space_of_the_response(text: str, edited: str) -> None:
    assert kept(text, f"  {RESPONSE}\n\n", "text", 0.9) == edited


@pytest.mark.parametrize("text", ["It is blue.", "WRONG: x", "TEXT:\nx\nWRONG: y", ""])
def test_a_whole_text_without_its_form_is_rejected(text: str) -> None:
    with pytest.raises(Rejected, match="no lines 'WRONG:' and 'TEXT:'"):
        kept(text, mode="text")


def test_an_answer_that_was_cut_is_rejected() -> None:
    with pytest.raises(Rejected, match="cut by a length limit"):
        check_edit(Answer(replacements(BLUE), complete=False), RESPONSE, mode="replacements", max_edit_share=1)


@pytest.mark.parametrize(
    ("original", "edited", "restored"),
    [
        ("It is  gren.\n\nYes", "It is blue.\nYes", "It is  blue.\n\nYes"),
        ("so “it” is gren", 'so "it" is blue', "so “it” is blue"),
        ("a gren thing", "a **blue** thing", "a **blue** thing"),
        ("a thing is gren", "a **thing** is blue", "a thing is blue"),
        ("# Title\ngren", "Title\nblue", "# Title\nblue"),
        ("a  b", "a b", "a b"),
        ("its gren", "it's gren", "it's gren"),
    ],
)
def test_format_beside_an_edit_is_put_back(original: str, edited: str, restored: str) -> None:
    assert restore_format(original, edited) == restored


@given(st.text(alphabet="ab .\n*“”", max_size=12), st.text(alphabet="ab .\n*“”", max_size=12))
def test_restoring_is_made_of_hunks_of_the_edit(original: str, edited: str) -> None:
    """Nothing is invented: what is restored is the original with some of the hunks."""
    some = hunks_of_texts(original, edited)
    assert apply_hunks(original, edited, some) == edited
    assert apply_hunks(original, edited, []) == original
    assert restore_format(original, original) == original
    assert (restore_format(original, edited) == original) == (edited == original)
