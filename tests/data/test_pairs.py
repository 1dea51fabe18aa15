from __future__ import annotations

import json

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
    with pytest.raises(ValueError, match="columns has the field 'reply'; it must be one of"):
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


SYSTEM, OTHER, TOOL = ({"role": role, "content": "hi"} for role in ("system", "customer", "tool"))
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
MORE = {"role": "user", "content": "go on"}


@pytest.mark.parametrize(
    ("prompt", "turns", "joined"),
    [
        ([USER], [assistant("a"), MORE], [USER, assistant("a"), MORE]),
        ("hi", [assistant("a"), MORE], [USER, assistant("a"), MORE]),
        (None, [USER, assistant("a"), MORE], [USER, assistant("a"), MORE]),
        ([USER], [USER, assistant("a"), MORE], [USER, assistant("a"), MORE]),
        ([SYSTEM, USER], [USER, assistant("a"), MORE], [SYSTEM, USER, assistant("a"), MORE]),
        ([USER], [SYSTEM, USER], [SYSTEM, USER]),
        ("hi", [SYSTEM, USER], [SYSTEM, USER]),
        ([SYSTEM], [USER], [SYSTEM, USER]),
        ([USER], [CALL, TOOL], [USER, CALL, TOOL]),
        ([USER, CALL, TOOL], [TOOL], [USER, CALL, TOOL]),
        ([USER, assistant("Sure: ")], [], [USER, assistant("Sure: ")]),
        ([USER, assistant("a")], [assistant("a"), MORE], [USER, assistant("a"), MORE]),
        ("", [USER], [USER]),
    ],
)
@pytest.mark.parametrize("sides", ["both", "original", "edited"])
def test_no_turn_is_lost(prompt, turns, joined, sides):
    row = {"prompt": prompt, "original": "a", "edited": "b"} if prompt is not None else {"original": "a", "edited": "b"}
    for side in ("original", "edited") if sides == "both" else (sides,):
        row[side] = [*turns, assistant(row[side])]
    assert one(row) == EditedPair(joined, "a", "b", None, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": [USER], "chosen": [MORE]}, "begins with another 'user' message than its prompt"),
        ({"prompt": "hello", "chosen": [USER]}, "begins with another 'user' message"),
        ({"prompt": [USER], "chosen": [SYSTEM, MORE]}, "begins with another 'system' message"),
        ({"prompt": [USER, assistant("x")], "chosen": [assistant("y"), USER]}, "begins with another 'assistant'"),
    ],
)
def test_turns_that_contradict_the_prompt_are_refused(row, message):
    row = {**row, "chosen": [*row["chosen"], assistant("b")]}
    with pytest.raises(ValueError, match=message):
        one({**row, "rejected": [*row["chosen"][:-1], assistant("a")]})
    with pytest.raises(ValueError, match=message):
        one({**row, "rejected": "a"})


@pytest.mark.parametrize("said", [{"tool_calls": [{}]}, {"reasoning_content": "hm"}, {"thinking": "hm"}])
def test_a_response_that_says_more_than_its_text_is_refused(said):
    chosen = [USER, {**assistant("b"), **said}]
    with pytest.raises(ValueError, match=rf"field 'chosen\[1\].{next(iter(said))}' is given; it must be absent"):
        one({"chosen": chosen, "rejected": [USER, assistant("a")]})


def test_sides_that_write_the_same_turns_in_two_ways():
    chosen, rejected = [USER, assistant("x"), MORE, assistant("b")], [assistant("x"), MORE, assistant("a")]
    assert one({"prompt": [USER], "chosen": chosen, "rejected": rejected}).prompt == [USER, assistant("x"), MORE]


def test_tools_are_kept():
    tools = [{"type": "function", "function": {"name": "f"}}]
    for value in (tools, json.dumps(tools)):
        assert one({"prompt": [USER], "original": "a", "edited": "b", "tools": value}).tools == tools


GOOD = {"prompt": "p", "original": "abc", "edited": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"original": "a", "edited": "b"}, "field 'prompt' is missing; it must be one of the row's, which are 'or"),
        ({"prompt": "p", "original": "a"}, "field 'edited' is missing"),
        ({}, "field 'original' is missing; it must be one of the row's, which are none"),
        ({**GOOD, "edited": None}, "field 'edited' is null; it must be text"),
        ({**GOOD, "original": 3}, "field 'original' is of type int; it must be text"),
        ({**GOOD, "prompt": {"text": "p"}}, "field 'prompt' is of type dict; it must be text"),
        ({**GOOD, "prompt": []}, "field 'prompt' is a list of 0; it must be text or a non-empty list of messages"),
        ({**GOOD, "prompt": ["hi"]}, r"field 'prompt\[0\]' is text; it must be a message with 'role' and 'content'"),
        ({**GOOD, "prompt": [{"role": "user"}]}, r"field 'prompt\[0\].content' is null; it must be text"),
        ({**GOOD, "edited": "a\ud83d"}, "field 'edited' is text with an unpaired surrogate at character 1"),
        ({**GOOD, "edited": [USER]}, r"field 'edited\[0\].role' is 'user'; it must be 'assistant' in the last message"),
        ({"chosen": [USER, assistant("b")], "rejected": [assistant("a")]}, "field 'chosen' has other messages before"),
        ({**GOOD, "error_spans": {"start": 0}}, "field 'error_spans' is of type dict; it must be a list"),
        ({**GOOD, "error_spans": [[0, 4]]}, r"field 'error_spans\[0\]' is \[0, 4\); it must lie within the 3 "),
        ({**GOOD, "error_spans": [[0, 1], [2, 1]]}, r"field 'error_spans\[1\]' is .* must lie within"),
        ({**GOOD, "error_spans": [[-1, 1]]}, r"field 'error_spans\[0\]' is .* must lie within"),
        ({**GOOD, "error_spans": [{"start": 0}]}, r"field 'error_spans\[0\].end' is null; it must be an integer"),
        ({**GOOD, "error_spans": [{"start": 0.0, "end": 1}]}, r"field 'error_spans\[0\].start' is of type float; it"),
        ({**GOOD, "error_spans": [{"start": True, "end": 1}]}, r"field 'error_spans\[0\].start' is of type bool; it"),
        ({**GOOD, "error_spans": [7]}, r"field 'error_spans\[0\]' is of type int; it must"),
        ({**GOOD, "tools": 7}, "field 'tools' is of type int; it must be a list of tools"),
        ({**GOOD, "tools": "[oops"}, "field 'tools' is text; it must be a list of tools, as JSON"),
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
