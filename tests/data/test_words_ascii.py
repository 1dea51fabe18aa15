"""Text in ASCII is split by a shorter pattern, into the same words as any other text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fgrl.data.segment import _CLASSES, _WORD, word_ranges, words

ASCII = st.text(alphabet=st.characters(max_codepoint=127), max_size=40)
DENSE = st.text(alphabet="aZ09_'., \n-\x1f\x00", max_size=16)


@given(ASCII | DENSE)
def test_ascii_is_split_as_other_text_is(text: str) -> None:
    ranges = [match.span() for match in _WORD.finditer(text.translate(_CLASSES))]
    assert word_ranges(text) == ranges
    assert words(text) == [text[start:end] for start, end in ranges]


@given(st.text(max_size=20))
def test_words_are_the_text_of_their_ranges(text: str) -> None:
    if not any("\u0e00" <= char <= "\u17ff" for char in text):  # scripts with a dictionary need a package
        assert words(text) == [text[start:end] for start, end in word_ranges(text)]
