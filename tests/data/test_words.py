from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrl.data import EditedPair, HuggingFaceTokenizer, PlainTokenizer, ResponseAligner
from fgrl.data.segment import word_ranges
from fgrl.data.words import overlapping, word_of_tokens

KINDS = ["byte_bpe", "metaspace", pytest.param("smollm2", marks=pytest.mark.slow)]


def marked(text, tokens, flags):
    """The text that the flagged tokens cover, one string for each run of characters."""
    covered = {at for (start, end), flag in zip(tokens.offsets, flags, strict=True) if flag for at in range(start, end)}
    return "".join(text[at] if at in covered else " " for at in range(len(text))).split()


def edits(tokenizer, original, edited, unit):
    (pair,) = ResponseAligner(HuggingFaceTokenizer(tokenizer), edit_unit=unit)([EditedPair("", original, edited)])
    return marked(original, pair.original, pair.original_edits), marked(edited, pair.edited, pair.edited_edits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("original", "edited", "expected"),
    [
        ("the unhappyest reader", "the unhappiest reader", (["unhappyest"], ["unhappiest"])),
        ("the cat sat", "the cats sat", (["cat"], ["cats"])),
        ("the cat sat", "the happy cat sat", ([], ["happy"])),
        ("the happy cat sat", "the cat sat", (["happy"], [])),
        ("the cat sat", "the cat, sat", ([], [","])),
        ("the cat sat", "the cat sat", ([], [])),
        ("", "the cat", ([], ["the", "cat"])),
        ("the 🤷 sat", "the 🤸 sat", (["🤷"], ["🤸"])),
    ],
    ids=["substituted", "piece added", "word inserted", "word deleted", "comma", "equal", "empty", "bytes"],
)
def test_edits_widen_to_words_on_both_sides(kind, original, edited, expected, request):
    assert edits(request.getfixturevalue(kind), original, edited, "word") == expected


@pytest.mark.parametrize(
    ("original", "edited", "expected"),
    [
        ("วันนี้ฉันจะไปตลาด", "วันนี้ฉันจะไปบ้าน", (["ตลาด"], ["บ้าน"])),
        ("ສະບາຍດີທ່ານ", "ສະບາຍດີເພື່ອນ", (["ທ່ານ"], ["ເພື່ອນ"])),
        ("བོད་ཀྱི་སྐད།", "བོད་ཀྱི་ཡིག།", (["སྐད"], ["ཡིག"])),
        ("هل أنت؟", "هل أنت،", (["؟"], ["،"])),
    ],
    ids=["Thai", "Lao", "Tibetan", "Arabic punctuation"],
)
def test_one_edited_word_of_a_script_without_spaces(byte_bpe, original, edited, expected):
    pytest.importorskip("icu4py")
    assert edits(byte_bpe, original, edited, "word") == expected


def test_token_edits_are_not_widened(byte_bpe):
    """The pieces that survive an edit are why word edits exist: if this fails, the tests above show nothing."""
    original, edited = edits(byte_bpe, "the unhappyest reader", "the unhappiest reader", "token")
    assert original != ["unhappyest"]
    assert edited != ["unhappiest"]


WORDS = st.lists(
    st.sampled_from(["the", "cat", "dogs", "unhappy", "reader's", "happiness,", "3.14", "naïve", "🤷", "xyzzy"]),
    max_size=8,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(original=WORDS, edited=WORDS)
def test_widened_edits_are_whole_words_and_agree_on_kept_tokens(kind, original, edited, request):
    tokenizer = HuggingFaceTokenizer(request.getfixturevalue(kind))
    row = EditedPair("", " ".join(original), "  ".join(edited))
    (exact,) = ResponseAligner(tokenizer)([row])
    (widened,) = ResponseAligner(tokenizer, edit_unit="word")([row])
    kept = []
    for text, tokens, labels, before, after in (
        (row.original, widened.original, widened.original_labels, exact.original_edits, widened.original_edits),
        (row.edited, widened.edited, widened.edited_labels, exact.edited_edits, widened.edited_edits),
    ):
        assert all(new or not old for old, new in zip(before, after, strict=True)), "an edit was lost"
        for first, last in word_ranges(text):
            flags = {
                flag for (start, end), flag in zip(tokens.offsets, after, strict=True) if start < last and first < end
            }
            assert len(flags) == 1, f"half of {text[first:last]!r} is edited"
        kept.append([flag for flag, label in zip(after, labels, strict=True) if label == 0])
    assert kept[0] == kept[1], "a kept token is edited on one side only"
    if row.original.split() == row.edited.split() and "  ".join(edited) == " ".join(original):
        assert not any(widened.original_edits)


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from(["the", "cat", "dogs", "and", "happy"]), min_size=1, max_size=8), data=st.data())
def test_one_wrong_word_is_marked_and_nothing_else(byte_bpe, words, data):
    at = data.draw(st.integers(0, len(words) - 1))
    wrong = [*words[:at], "unhappyness", *words[at + 1 :]]
    right = [*words[:at], "unhappiness", *words[at + 1 :]]
    assert edits(byte_bpe, " ".join(wrong), " ".join(right), "word") == (["unhappyness"], ["unhappiness"])


def test_a_token_over_two_words_joins_them():
    tokens = PlainTokenizer()(["ab cd ef"])[0]
    joined = type(tokens)(ids=[0, 1, 2, 3], offsets=[(0, 1), (1, 4), (4, 5), (6, 8)])
    assert word_of_tokens("ab cd ef", joined) == [0, 0, 0, 1]


def test_white_space_tokens_are_words_of_their_own():
    tokens = PlainTokenizer()(["ab cd"])[0]
    spaced = type(tokens)(ids=[0, 1, 2, 3], offsets=[(0, 1), (1, 2), (2, 2), (3, 5)])
    assert word_of_tokens("ab cd", spaced) == [0, 0, 1, 2]


@pytest.mark.parametrize("kind", ["byte_bpe", "metaspace"])
@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(4, 7)], ["cat"]),
        ([(3, 8)], ["cat"]),  # the spaces at both ends belong to no word
        ([(5, 6)], ["cat"]),
        ([(3, 4)], []),
        ([(8, 9), (0, 1)], ["the", "sat"]),
        ([], []),
        ([(4, 4)], []),
    ],
    ids=["word", "with spaces", "inside", "space only", "two spans", "no span", "empty span"],
)
def test_error_spans_on_tokens(kind, spans, expected, request):
    text = "the cat sat"
    (tokens,) = HuggingFaceTokenizer(request.getfixturevalue(kind))([text])
    flags = overlapping(tokens.offsets, spans)
    touched = marked(text, tokens, flags)
    assert all(word in expected or any(word in whole for whole in expected) for word in touched)
    assert bool(touched) == bool(expected)
    for start, end in spans:
        assert text[start:end].replace(" ", "") in "".join(touched)


def test_error_spans_on_bytes_of_one_character(byte_bpe):
    text = "the 🤷 sat"
    (tokens,) = HuggingFaceTokenizer(byte_bpe)([text])
    flags = overlapping(tokens.offsets, [(4, 5)])
    assert sum(flags) == sum(offset == (4, 5) for offset in tokens.offsets) > 1
