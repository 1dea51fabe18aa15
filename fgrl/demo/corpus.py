"""Where the demo's text comes from: real prose and real misspellings out of packages that are already installed.

The prose is CPython's own language reference (`pydoc_data.topics`), the misspellings are codespell's word list.
Topics, not sentences, are split into training and held-out ones, so that no held-out prompt shares a paragraph with
the training text.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
_PLAIN_TOKEN = re.compile(r"[a-z]+(?:['._/-][a-z]+)*[.,;:!?]?")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z\"\u201c(*`])")
_MARKUP = re.compile(r"\s*\[\d+\]|[\"\u201c\u201d*`()\[\]]")
_BULLET = re.compile(r"^(?:[*•]|\d+\.)\s+")
_UNDERLINE = frozenset("*=-~^+|")
_MIN_SENTENCE_WORDS = 4


@dataclass(frozen=True)
class Corpus:
    """Clean prose, split by topic, and what counts as a word in it.

    Attributes:
        train: one tuple of sentences per training topic.
        heldout: one tuple of sentences per held-out topic; only prompts and the perplexity of human text come from
            here.
        lexicon: every word of the clean prose, both splits, lower case, with how often it occurs: the annotator's
            dictionary.
    """

    train: tuple[tuple[str, ...], ...]
    heldout: tuple[tuple[str, ...], ...]
    lexicon: Mapping[str, int]


def load_corpus(seed: int, heldout_share: float) -> Corpus:
    """Read the prose and split its topics.

    Args:
        seed: decides which topics are held out.
        heldout_share: share of all words in held-out topics (reached or just passed), between 0 and 1.

    Raises:
        ValueError: when `heldout_share` is not between 0 and 1.
        RuntimeError: when this Python has no `pydoc_data.topics`.
    """
    if not 0.0 < heldout_share < 1.0:
        raise ValueError(f"heldout_share is {heldout_share}; it must be between 0 and 1")
    documents = {name: clean_sentences(text) for name, text in sorted(_topics().items())}
    names = [name for name, sentences in documents.items() if sentences]
    random.Random(f"{seed}-topics").shuffle(names)
    wanted = heldout_share * sum(_count_words(documents[name]) for name in names)
    heldout: list[str] = []
    held_words = 0
    for name in names:
        if held_words >= wanted:
            break
        heldout.append(name)
        held_words += _count_words(documents[name])
    lexicon = Counter(word for name in names for sentence in documents[name] for word in WORD.findall(sentence))
    return Corpus(
        train=tuple(documents[name] for name in names[len(heldout) :]),
        heldout=tuple(documents[name] for name in heldout),
        lexicon=lexicon,
    )


def clean_sentences(text: str) -> tuple[str, ...]:
    """The plain sentences of one topic, in order, in lower case and without markup.

    Headings, grammar rules and code are left out; a sentence with anything but words, dotted names and punctuation
    left in it (a number, an operator) is dropped whole. Names such as `__init__()` lose their underscores and
    parentheses.
    """
    sentences = []
    for paragraph in _paragraphs(text):
        for sentence in _SENTENCE_END.split(paragraph):
            tokens = [token.strip("_") for token in _MARKUP.sub("", sentence.replace("\u2019", "'")).lower().split()]
            plain = len(tokens) >= _MIN_SENTENCE_WORDS and all(map(_PLAIN_TOKEN.fullmatch, tokens))
            if plain and tokens[-1][-1] in ".:!?":
                sentences.append(" ".join(tokens))
    return tuple(sentences)


def load_misspellings() -> dict[str, tuple[str, ...]]:
    """codespell's dictionary: misspelling -> its corrections, single words only, best first.

    Raises:
        RuntimeError: when codespell is not installed.
    """
    try:
        path = resources.files("codespell_lib") / "data" / "dictionary.txt"
        lines = path.read_text(encoding="utf-8").splitlines()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise RuntimeError("the demo takes its misspellings from codespell: pip install 'fgrl[demo]'") from error
    table = {}
    for line in lines:
        wrong, _, right = line.strip().lower().partition("->")
        corrections = tuple(word for word in (part.strip() for part in right.split(",")) if WORD.fullmatch(word))
        if WORD.fullmatch(wrong) and corrections:
            table[wrong] = corrections
    return table


class Misspeller:
    """Misspells a share of the words of a text, the way people do.

    A word that codespell lists mistakes for gets one of them; any other word gets a slip of the fingers: a letter
    dropped, doubled, or swapped with the next. The result is never a word of the lexicon.

    Args:
        misspellings: misspelling -> corrections, as from `load_misspellings`.
        lexicon: words that are right.
        share: share of the words that are misspelled, among those of at least `min_letters` letters.
        min_letters: shorter words are left alone.
    """

    def __init__(
        self,
        misspellings: Mapping[str, Sequence[str]],
        lexicon: Container[str],
        share: float,
        min_letters: int = 3,
    ) -> None:
        self._mistakes: dict[str, list[str]] = {}
        for wrong, corrections in misspellings.items():
            if wrong not in lexicon:
                self._mistakes.setdefault(corrections[0], []).append(wrong)
        self._lexicon = lexicon
        self._share = share
        self._min_letters = min_letters

    def __call__(self, text: str, rng: random.Random) -> str:
        """`text` with a share of its words misspelled; the same `rng` state gives the same text."""

        def replace(match: re.Match[str]) -> str:
            word = match.group()
            if len(word) < self._min_letters or rng.random() >= self._share:
                return word
            listed = self._mistakes.get(word)
            return rng.choice(listed) if listed else self._slip(word, rng)

        return WORD.sub(replace, text)

    def _slip(self, word: str, rng: random.Random) -> str:
        kinds = ["drop", "double", "swap"]
        for kind in rng.sample(kinds, len(kinds)):
            i = rng.randrange(len(word) - 1)
            if kind == "drop":
                slipped = word[:i] + word[i + 1 :]
            elif kind == "double":
                slipped = word[: i + 1] + word[i:]
            else:
                slipped = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
            if slipped not in self._lexicon and WORD.fullmatch(slipped):
                return slipped
        return word


def make_prompts(documents: Sequence[Sequence[str]], words: int, rng: random.Random) -> list[str]:
    """The first `words` words of every sentence that goes on for longer, shuffled."""
    prompts = []
    for document in documents:
        for sentence in document:
            tokens = sentence.split()
            if len(tokens) > words:
                prompts.append(" ".join(tokens[:words]))
    prompts = list(dict.fromkeys(prompts))
    rng.shuffle(prompts)
    return prompts


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise RuntimeError("the demo reads its prose from pydoc_data.topics, which this Python lacks") from error
    return dict(topics)


def _paragraphs(text: str) -> Iterator[str]:
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            block.append(line.strip())
        elif block:
            heading = set(block[-1]) <= _UNDERLINE
            grammar = any("::=" in row for row in block)
            if not heading and not grammar:
                yield _BULLET.sub("", " ".join(block))
            block = []


def _count_words(sentences: Sequence[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)
