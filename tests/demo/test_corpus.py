"""The demo's text: real, clean, split by topic, and decided by the seed."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("codespell_lib")
pytest.importorskip("pydoc_data.topics")

from fgrl.demo.corpus import WORD, Misspeller, clean_sentences, load_corpus, load_misspellings, make_prompts

PAGE = """The "try" statement
*******************

   try_stmt ::= try1_stmt | try2_stmt

The "try" statement specifies exception handlers, and
"__exit__()" is called.  Called when x == 3 or more. See it:

* Names such as "sys.path" are looked up [1].
"""


def test_markup_headings_grammar_and_code_are_left_out() -> None:
    assert clean_sentences(PAGE) == (
        "the try statement specifies exception handlers, and exit is called.",
        "names such as sys.path are looked up.",
    )


def test_the_split_is_by_topic_and_by_seed() -> None:
    corpus, again, other = load_corpus(0, 0.15), load_corpus(0, 0.15), load_corpus(1, 0.15)
    assert corpus == again
    assert corpus.heldout != other.heldout
    assert not set(corpus.train) & set(corpus.heldout)
    words = [sum(len(s.split()) for document in part for s in document) for part in (corpus.train, corpus.heldout)]
    assert 0.1 < words[1] / sum(words) < 0.5
    assert sum(words) > 20_000


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="heldout_share"):
        load_corpus(0, share)


def test_misspellings_are_single_words_with_corrections() -> None:
    table = load_misspellings()
    assert len(table) > 30_000
    assert table["recieve"] == ("receive",)
    assert all(WORD.fullmatch(word) and corrections for word, corrections in table.items())


class TestMisspeller:
    lexicon = frozenset(["receive", "the", "it", "frobnicate", "is"])

    def test_listed_mistakes_and_slips_never_hit_a_word(self) -> None:
        misspell = Misspeller({"recieve": ("receive",), "the": ("receive",)}, self.lexicon, 1.0)
        rng = random.Random(0)
        seen = {misspell("receive", rng) for _ in range(20)}
        assert seen == {"recieve"}
        slips = {misspell("frobnicate", rng) for _ in range(50)}
        assert len(slips) > 5
        assert not slips & self.lexicon

    def test_short_words_and_punctuation_stay(self) -> None:
        misspell = Misspeller({}, self.lexicon, 1.0)
        text = misspell("it is: frobnicate, it is.", random.Random(0))
        assert WORD.split(text) == ["", " ", ": ", ", ", " ", "."]
        assert text.startswith("it is: ")
        assert text.endswith(", it is.")

    def test_the_share_is_kept_and_the_generator_decides(self) -> None:
        misspell = Misspeller(load_misspellings(), self.lexicon, 0.25)
        text = "frobnicate " * 4000
        noisy = misspell(text, random.Random(3))
        changed = sum(word != "frobnicate" for word in noisy.split())
        assert 900 < changed < 1100
        assert noisy == misspell(text, random.Random(3)) != misspell(text, random.Random(4))


def test_prompts_are_beginnings_of_longer_sentences() -> None:
    prompts = make_prompts([["a b c d", "a b", "e f g h i"], ["a b c x"]], 3, random.Random(0))
    assert sorted(prompts) == ["a b c", "e f g"]
