"""The annotator edits as little as it can, and only what is wrong."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("codespell_lib")

from fgrl.demo.annotator import SpellChecker, edit_distance
from fgrl.demo.corpus import WORD, load_misspellings

LEXICON = {"the": 9, "object": 5, "objects": 4, "is": 8, "called": 3, "list": 2, "last": 1, "lost": 1, "receive": 1}
WORDS = st.sampled_from([*LEXICON, "teh", "objct", "lst", "qqq", "recieve", "calledd", "x"])
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", ", ", ". "])), max_size=12).map(
    lambda parts: "".join(word + gap for word, gap in parts)
)


@pytest.fixture(scope="module")
def checker() -> SpellChecker:
    return SpellChecker(LEXICON, {"teh": ("the",), "recieve": ("receive",), "lst": ("lust", "last")})


def test_listed_correction_comes_before_the_nearest_word(checker: SpellChecker) -> None:
    # "list" is as near as "last" and more frequent; codespell's first correction, "lust", is not in the lexicon.
    assert checker.correct("teh lst") == "the last"


def test_the_nearest_word_wins_and_among_equals_the_more_frequent(checker: SpellChecker) -> None:
    assert checker.correct("objct caled") == "object called"
    assert checker.correct("lastt") == "last"  # one letter from "last", two from the more frequent "list"
    assert checker.correct("lxst") == "list"  # one letter from three words: "list" is the most frequent


def test_right_words_and_everything_between_words_stay(checker: SpellChecker) -> None:
    text = "  the object, is (called) -- the list: 42!\n"
    assert checker.correct(text) == text
    assert checker.count(text) == (0, 6)


@given(TEXTS)
def test_correcting_twice_changes_nothing_more(checker: SpellChecker, text: str) -> None:
    once = checker.correct(text)
    assert checker.count(once)[0] == 0
    assert checker.correct(once) == once


@given(TEXTS)
def test_only_wrong_words_change(checker: SpellChecker, text: str) -> None:
    wrong = {text[start:end] for start, end in checker.wrong_spans(text)}
    before, after = WORD.findall(text), WORD.findall(checker.correct(text))
    assert len(before) == len(after)
    assert WORD.split(text) == WORD.split(checker.correct(text))
    assert all((ours == theirs) != (ours in wrong) for ours, theirs in zip(before, after, strict=True))


def test_a_cut_last_word_is_right_where_a_word_begins_so(checker: SpellChecker) -> None:
    assert checker.count("the obj") == (1, 2)
    assert checker.count("the obj", complete=False) == (0, 2)
    assert checker.count("the obj ", complete=False) == (1, 2)  # something follows it: it was not cut
    assert checker.correct("the obq", complete=False) != "the obq"


@given(st.text("abc", max_size=6), st.text("abc", max_size=6), st.integers(0, 7))
@example("aabb", "aaaaaa", 2)
def test_edit_distance_is_levenshtein_up_to_its_limit(a: str, b: str, limit: int) -> None:
    def plain(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(plain(i - 1, j) + 1, plain(i, j - 1) + 1, plain(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert edit_distance(a, b, limit) == min(plain(len(a), len(b)), limit + 1)


@given(st.text("abcdelst", min_size=1, max_size=8))
def test_the_bounded_search_finds_the_nearest_word(checker: SpellChecker, word: str) -> None:
    best = min(edit_distance(word, known, 99) for known in LEXICON)
    corrected = checker.correct(word)
    assert word in LEXICON or word in ("lst",) or edit_distance(word, corrected, 99) == best


def test_real_misspellings_are_corrected() -> None:
    lexicon = {"definition": 2, "occurs": 1, "exception": 1}
    checker = SpellChecker(lexicon, load_misspellings())
    assert checker.correct("defintion ocurs excpetion") == "definition occurs exception"


def test_an_empty_lexicon_is_refused() -> None:
    with pytest.raises(ValueError, match="lexicon"):
        SpellChecker({}, {})
