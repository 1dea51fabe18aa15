from __future__ import annotations

import pytest

from fgrl.data import EditedPair, read_pairs

USER = {"role": "user", "content": "hi"}


def assistant(text):
    return {"role": "assistant", "content": text}


def one(row, **options):
    (pair,) = read_pairs([row], **options)
    return pair


def test_text_row():
    row = {"prompt": "p", "original": "abc", "edited": "", "error_spans": [{"start": 0, "end": 3, "type": "x"}, [1, 2]]}
    assert one(row) == EditedPair("p", "abc", "", ((0, 3), (1, 2)), 1)


@pytest.mark.parametrize(("spans", "expected"), [(None, None), ([], ()), ([[3, 3]], ((3, 3),))])
def test_no_spans_is_not_the_same_as_nobody_looked(spans, expected):
    assert one({"prompt": "p", "original": "abc", "edited": "", "error_spans": spans}).error_spans == expected


def test_aliases_and_columns():
    assert one({"question": "q", "rejected": "a", "chosen": "b"}) == EditedPair("q", "a", "b", None, 1)
    both = {"question": "q", "prompt": "p", "rejected": "r", "original": "o", "chosen": "c", "edited": "e"}
    assert one(both) == EditedPair("p", "o", "e", None, 1)
    assert one({**both, "instruction": "i"}, columns={"prompt": "instruction"}).prompt == "i"
    with pytest.raises(ValueError, match="unknown field 'reply'"):
        read_pairs([], columns={"reply": "x"})


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": [USER], "chosen": [assistant("b")], "rejected": [assistant("a")]}, [USER]),
        ({"chosen": [USER, assistant("b")], "rejected": [USER, assistant("a")]}, [USER]),
        ({"prompt": "hi", "chosen": [USER, assistant("b")], "rejected": [USER, assistant("a")]}, [USER]),
        ({"prompt": "hi", "chosen": [assistant("b")], "rejected": [assistant("a")]}, [USER]),
        ({"prompt": [USER], "chosen": "b", "rejected": "a"}, [USER]),
    ],
    ids=["explicit", "implicit", "text and whole conversations", "text and turns", "messages and text"],
)
def test_preference_format_of_trl(row, prompt):
    assert one(row) == EditedPair(prompt, "a", "b", None, 1)


GOOD = {"prompt": "p", "original": "abc", "edited": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"original": "a", "edited": "b"}, "field 'prompt' is missing: the row has 'original', 'edited'"),
        ({"prompt": "p", "original": "a"}, "field 'edited' is missing"),
        ({}, "field 'original' is missing: the row has no fields"),
        ({**GOOD, "edited": None}, "field 'edited' must be text, got NoneType"),
        ({**GOOD, "original": 3}, "field 'original' must be text, got int"),
        ({**GOOD, "prompt": {"text": "p"}}, "field 'prompt' must be text, got dict"),
        ({**GOOD, "prompt": []}, "field 'prompt' must be text or a non-empty list of messages, got a list of 0"),
        ({**GOOD, "prompt": ["hi"]}, r"field 'prompt\[0\]' must be a message with 'role' and 'content', got str"),
        ({**GOOD, "prompt": [{"role": "user"}]}, r"field 'prompt\[0\].content' must be text"),
        ({**GOOD, "edited": "a\ud83d"}, "field 'edited' has an unpaired surrogate at character 1"),
        ({**GOOD, "edited": [USER]}, r"field 'edited\[0\].role' must be 'assistant' in the last message, got 'user'"),
        ({"chosen": [USER, assistant("b")], "rejected": [assistant("a")]}, "field 'chosen' must have the same"),
        ({**GOOD, "error_spans": {"start": 0}}, "field 'error_spans' must be a list"),
        ({**GOOD, "error_spans": [[0, 4]]}, r"field 'error_spans\[0\]' must lie within the 3 characters .*\[0, 4\)"),
        ({**GOOD, "error_spans": [[0, 1], [2, 1]]}, r"field 'error_spans\[1\]' must lie within"),
        ({**GOOD, "error_spans": [[-1, 1]]}, r"field 'error_spans\[0\]' must lie within"),
        ({**GOOD, "error_spans": [{"start": 0}]}, r"field 'error_spans\[0\].end' must be an integer, got null"),
        ({**GOOD, "error_spans": [{"start": 0.0, "end": 1}]}, r"field 'error_spans\[0\].start' must be .* got float"),
        ({**GOOD, "error_spans": [{"start": True, "end": 1}]}, r"field 'error_spans\[0\].start' must be .* got bool"),
        ({**GOOD, "error_spans": [7]}, r"field 'error_spans\[0\]' must be .* got int"),
    ],
)  # fmt: skip
def test_bad_row_names_the_field_in_one_sentence(row, message):
    with pytest.raises(ValueError, match=f"^list, row 1: {message}") as caught:
        one(row)
    assert "\n" not in str(caught.value)


def test_real_edits(real_edits):
    pairs = list(read_pairs(real_edits))
    assert len(pairs) == 350
    assert sum(pair.edited == "" for pair in pairs) == 10
    assert all(pair.error_spans is not None for pair in pairs)
