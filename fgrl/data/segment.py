"""Words of a text in any script, with their character ranges."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# The class of a character, which stands for it in the pattern below.
_LETTER, _DIGIT, _MARK, _JOINER, _FLAG = "a", "d", "m", "j", "r"
_DICTIONARY, _SINGLE = "t", "c"  # of a script without spaces: with a dictionary, and without
_APOSTROPHE, _SEPARATOR, _OTHER, _SPACE = "q", "s", "p", " "

_APOSTROPHES = "'\u2019\u05f3\u05f4\u00b7\u0387"  # between letters: don't, Hebrew geresh, Catalan and Greek middle dot
_SEPARATORS = ".,\u066b\u066c"  # between digits: also the Arabic decimal and thousands separators
_BREAKING_FORMATS = "\u200b\ufeff"  # zero-width spaces end a word, other format characters are part of it

# Thai, Lao, Burmese (three blocks), Khmer: written without spaces between words, and ICU has a dictionary for them.
_DICTIONARY_SCRIPTS = re.compile(
    "[\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0eff\u1000-\u109f\u1780-\u17dd\ua9e0-\ua9ff\uaa60-\uaa7f]"
)
# Kana, Han; Tai Le, New Tai Lue, Tai Tham, Balinese, Javanese, Tai Viet, Ahom: without spaces and without a dictionary.
_SINGLE_SCRIPTS = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u1950-\u19df\u1a20-\u1aad\u1b00-\u1b4b\ua980-\ua9c0\uaa80-\uaadf\U00011700-\U0001174f]"
)
_WORD = re.compile(
    "(?P<dictionary>t[tmj]*)"
    "|(?:[ad]|(?<=d)s(?=d)|(?<=[amj])q(?=a))(?:[admj]|(?<=d)s(?=d)|(?<=[amj])q(?=a))*"
    "|rr?[mj]*"
    "|[cpqs]m*(?:j+[cpqs]m*)*j*"
    "|[^ ]"
)

# The same for text in ASCII, which needs no classes: several times as fast.
_ASCII_WORD = re.compile(r"[A-Za-z0-9_]+(?:(?:(?<=[0-9])[.,](?=[0-9])|(?<=[A-Za-z_])'(?=[A-Za-z_]))[A-Za-z0-9_]+)*|\S")


class _Classes(dict[int, str]):
    """Code point to class, for `str.translate`; worked out when a character is first seen."""

    def __missing__(self, code: int) -> str:
        kind = self[code] = _class(chr(code))
        return kind


def word_ranges(text: str) -> list[tuple[int, int]]:
    """Character ranges of the words and punctuation marks of `text`, in order; white space is in none.

    A word is a run of letters, digits, `_` and the marks on them. An apostrophe between letters ("don't") and a
    separator between digits ("3.14") belong to it. Every other punctuation mark and symbol is on its own, an emoji
    with all its parts. Where a script has no spaces, words of Thai, Lao, Khmer and Burmese are those of ICU's
    dictionaries, a syllable of Tibetan is a word, and so is every character of Chinese and Japanese.

    Raises:
        ImportError: a dictionary is needed and icu4py is not installed.

    Example:
        >>> text = "It's 3.14, not pi."
        >>> [text[start:end] for start, end in word_ranges(text)]
        ["It's", '3.14', ',', 'not', 'pi', '.']
    """
    if text.isascii():
        return [match.span() for match in _ASCII_WORD.finditer(text)]
    ranges: list[tuple[int, int]] = []
    for match in _WORD.finditer(text.translate(_CLASSES)):
        if match["dictionary"]:
            ranges += _dictionary_words(text, *match.span())
        else:
            ranges.append(match.span())
    return ranges


def words(text: str) -> list[str]:
    """The words and punctuation marks of `text`: the text of each of its `word_ranges`.

    Example:
        >>> words("It's 3.14.")
        ["It's", '3.14', '.']
    """
    if text.isascii():
        return _ASCII_WORD.findall(text)
    return [text[start:end] for start, end in word_ranges(text)]


def _dictionary_words(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    try:
        from icu4py.breakers import WordBreaker
    except ImportError as error:
        raise ImportError(
            "the text is in Thai, Lao, Khmer or Burmese, whose words are found in a dictionary; "
            "icu4py must be installed for them (pip install icu4py, on Python 3.11 or newer)"
        ) from error
    for word in WordBreaker(text[start:end], "root"):  # its own offsets count UTF-16 units
        yield start, start + len(word)
        start += len(word)


def _class(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace():
        return _SPACE
    if character in _APOSTROPHES:
        return _APOSTROPHE
    if character in _SEPARATORS:
        return _SEPARATOR
    if "\U0001f1e6" <= character <= "\U0001f1ff":
        return _FLAG
    if character == "\u200d":
        return _JOINER
    if "\U0001f3fb" <= character <= "\U0001f3ff" or (category == "Cf" and character not in _BREAKING_FORMATS):
        return _MARK
    if category[0] in "LM" and _DICTIONARY_SCRIPTS.match(character):
        return _DICTIONARY
    if category[0] == "M":
        return _MARK
    if category[0] in "LN" and _SINGLE_SCRIPTS.match(character):
        return _SINGLE
    if category == "Nd":
        return _DIGIT
    return _LETTER if category[0] in "LN" or category == "Pc" else _OTHER


_CLASSES = _Classes()
