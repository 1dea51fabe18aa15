from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrl.data.segment import word_ranges
from fgrl.data.tokens import HuggingFaceTokenizer, PlainTokenizer


def words(text):
    return [text[start:end] for start, end in word_ranges(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, 'now'.", ["Don't", "stop", ",", "'", "now", "'", "."]),
        ("1,000.5 or 3.", ["1,000.5", "or", "3", "."]),
        ("well-known snake_case", ["well", "-", "known", "snake_case"]),
        ("na\u00efve e\u0301t\u00e9 हिन्दी", ["na\u00efve", "e\u0301t\u00e9", "हिन्दी"]),
        ("日本語 text", ["日", "本", "語", "text"]),
        ("a\u00a0b\r\n\tc", ["a", "b", "c"]),
        ("هل أنت؟ نعم، أنا 1٬000٫5", ["هل", "أنت", "؟", "نعم", "،", "أنا", "1٬000٫5"]),
        ("नमस्ते। दुनिया", ["नमस्ते", "।", "दुनिया"]),
        ("می\u200cخواهم a\u200bb", ["می\u200cخواهم", "a", "\u200b", "b"]),
        ("בּצה״ל col·lecció", ["בּצה״ל", "col·lecció"]),
        (
            "\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd 1\ufe0f\u20e3",
            ["\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "1\ufe0f\u20e3"],
        ),
        ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", ["\U0001f1e9\U0001f1ea", "\U0001f1eb\U0001f1f7"]),
        ("བོད་ཀྱི་སྐད།", ["བོད", "་", "ཀྱི", "་", "སྐད", "།"]),
        ("", []),
    ],
    ids=[
        "apostrophes",
        "numbers",
        "joined",
        "marks",
        "unspaced script",
        "white space",
        "Arabic",
        "danda",
        "zero width",
        "marks of other scripts",
        "emoji",
        "flags",
        "Tibetan",
        "empty",
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("วันนี้ฉันจะไปตลาด", ["วัน", "นี้", "ฉัน", "จะ", "ไป", "ตลาด"]),
        ("ສະບາຍດີທ່ານ", ["ສະບາຍດີ", "ທ່ານ"]),
        ("ខ្ញុំស្រឡាញ់ភាសាខ្មែរ។", ["ខ្ញុំ", "ស្រឡាញ់", "ភាសាខ្មែរ", "។"]),
        ("မြန်မာနိုင်ငံသည်ကြီးမားသည်။", ["မြန်မာနိုင်ငံ", "သည်", "ကြီးမား", "သည်", "။"]),
        ("\U0001f600 ปี2024 a", ["\U0001f600", "ปี", "2024", "a"]),
    ],
    ids=["Thai", "Lao", "Khmer", "Burmese", "mixed"],
)
def test_words_of_a_dictionary(text, expected):
    pytest.importorskip("icu4py")
    assert words(text) == expected


def test_a_dictionary_that_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "icu4py.breakers", None)
    assert words("plain words, 日本") == ["plain", "words", ",", "日", "本"]
    with pytest.raises(ImportError, match="icu4py must be installed"):
        words("it means ไป")


THAI = [chr(code) for code in (*range(0x0E01, 0x0E3B), *range(0x0E40, 0x0E4F))]


@given(st.text() | st.text(st.sampled_from([*THAI, "\U0001f600", "\u200d", "\u0301", " ", "a", ".", "1"])))
def test_words_cover_everything_but_white_space(text):
    covered = {at for start, end in word_ranges(text) for at in range(start, end)}
    assert covered == {at for at, character in enumerate(text) if not character.isspace()}
    ends = [0, *(bound for span in word_ranges(text) for bound in span)]
    assert ends == sorted(ends)


def test_plain_tokens_agree_within_a_call():
    one, two = PlainTokenizer()(["the cat, the dog", "dog the"])
    assert one.ids[0] == one.ids[3] == two.ids[1]
    assert one.ids[4] == two.ids[0]
    assert PlainTokenizer().pieces("the cat, the dog", one) == ["the", "cat", ",", "the", "dog"]


@pytest.mark.parametrize("kind", ["byte_bpe", "with_bos", "metaspace", "bare"])
def test_fast_tokens_have_no_special_tokens_and_exact_ranges(kind, request):
    tokenizer = request.getfixturevalue(kind)
    texts = ["the unhappy reader's 🤷 café\r\n\n cats", "", "  two  spaces "]
    for text, tokens in zip(texts, HuggingFaceTokenizer(tokenizer)(texts), strict=True):
        assert tokens.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert not set(tokens.ids) & set(tokenizer.all_special_ids)
        for start, end in tokens.offsets:
            assert text[start:end] == text[start:end].strip()
        covered = {at for start, end in tokens.offsets for at in range(start, end)}
        assert covered == {at for at, character in enumerate(text) if not character.isspace()}


def test_slow_tokens_are_found_in_the_text(slow):
    text = "unhappy readers  believe"
    (tokens,) = HuggingFaceTokenizer(slow)([text])
    pieces = [text[start:end] for start, end in tokens.offsets]
    assert pieces == ["unh", "app", "y", "rea", "der", "s", "bel", "iev", "e"]


def test_slow_token_that_is_not_in_the_text_fills_the_gap(slow):
    text = "the café is"  # this tokenizer strips the accent, so that its piece is nowhere in the text
    (tokens,) = HuggingFaceTokenizer(slow)([text])
    assert [text[start:end] for start, end in tokens.offsets] == ["the", "caf", "é", "is"]


def test_end_of_sequence_spelled_out_is_left_out(byte_bpe):
    (tokens,) = HuggingFaceTokenizer(byte_bpe, drop_last=byte_bpe.eos_token_id)(["the cat<eos>"])
    assert byte_bpe.decode(tokens.ids) == "the cat"
    assert len(tokens.offsets) == len(tokens.ids)
