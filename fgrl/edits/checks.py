"""Reading an answer as an edit, and what an edit must be to be kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fgrl.data.fields import check_text
from fgrl.data.hunks import Hunk, hunks_of_texts
from fgrl.data.share import edit_shares
from fgrl.edits.asking import Answer

Mode = Literal["replacements", "text"]
_TEXT = re.compile(r"\s*WRONG:[ \t]*([^\n]*)\n\s*TEXT:[ \t]*\n?(.*)\Z", re.DOTALL)
_FENCE = re.compile(r"```[\w-]*\n(.*?)\n?```\s*\Z", re.DOTALL)
_NOTHING = ("", "nothing", "none", "nothing.", "n/a")
# Characters whose look alone differs: a change between them is a change of format.
_LOOK = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})
_FORMAT = frozenset("*_#`~|>")


class Rejected(ValueError):
    """An answer that is no edit to keep; the message says why, for the editor to read."""


@dataclass(frozen=True)
class Edit:
    """A checked answer.

    Attributes:
        edited: The response after the edit; the response itself where nothing was wrong.
        wrong: What the editor said is wrong; empty where nothing is.
        share: Share of the words that the edit changes.
    """

    edited: str
    wrong: str
    share: float


def check_edit(answer: Answer, response: str, *, mode: Mode, max_edit_share: float, keep_format: bool = True) -> Edit:
    """The edit that an answer holds.

    White space and format that changed beside words that did not are put back: they are no part of the edit.

    Args:
        answer: What the editor said.
        response: The response it was to edit.
        mode: The form the answer has.
        max_edit_share: The largest share of the words that an edit may change.
        keep_format: Whether changes of white space, of the look of quotes and of markup are put back.

    Raises:
        Rejected: it cannot be read, contradicts itself, or changes too much.

    Example:
        >>> answer = Answer('{"wrong": "colour", "replacements": [{"find": "gren", "replace": "blue"}]}')
        >>> check_edit(answer, "It is gren.", mode="replacements", max_edit_share=0.5)
        Edit(edited='It is blue.', wrong='colour', share=0.25)
    """
    if not answer.complete:
        raise Rejected("the answer was cut by a length limit; it must be shorter")
    read = _replacements if mode == "replacements" else _whole_text
    wrong, edited = read(answer.text, response)
    wrong = "" if wrong.strip().lower() in _NOTHING else wrong.strip()
    if keep_format:
        edited = restore_format(response, edited)
    try:
        check_text(edited, "edited")
    except ValueError as error:
        raise Rejected(str(error)) from error
    if wrong and edited == response:
        raise Rejected(f"the answer says that something is wrong ({wrong[:200]}), and changes nothing; it must do both")
    if not wrong and edited != response:
        raise Rejected("the answer says that nothing is wrong, and changes the response; it must do neither")
    if response.strip() and not edited.strip():
        raise Rejected("the edit leaves nothing of the response; it must change as little as possible")
    share = edit_shares([response], [edited])[0]
    if share > max_edit_share:
        raise Rejected(
            f"the edit changes {share:.0%} of the words; it must change at most {max_edit_share:.0%}, and only what is "
            "wrong"
        )
    return Edit(edited, wrong, share)


def restore_format(original: str, edited: str) -> str:
    """`edited` without the hunks that change white space, markup or the look of quotes alone, and words not at all.

    An edit that is nothing else stays as it is: the format is then what was wrong.
    """
    some = hunks_of_texts(original, edited)
    kept = [hunk for hunk in some if not _is_format(original[hunk[0] : hunk[1]], edited[hunk[2] : hunk[3]])]
    return apply_hunks(original, edited, [_without_space(original, edited, hunk) for hunk in kept] or some)


def _without_space(original: str, edited: str, hunk: Hunk) -> Hunk:
    """A hunk of words without the white space around them, where both sides have some: it is the original's then."""
    i1, i2, j1, j2 = hunk
    removed, added = original[i1:i2], edited[j1:j2]
    if not removed.strip() or not added.strip():
        return hunk
    lead = len(removed) - len(removed.lstrip()), len(added) - len(added.lstrip())
    trail = len(removed) - len(removed.rstrip()), len(added) - len(added.rstrip())
    if (lead[0] or original[:i1][-1:].isspace()) and (lead[1] or edited[:j1][-1:].isspace()):
        i1, j1 = i1 + lead[0], j1 + lead[1]
    if (trail[0] or original[i2:][:1].isspace()) and (trail[1] or edited[j2:][:1].isspace()):
        i2, j2 = i2 - trail[0], j2 - trail[1]
    return i1, i2, j1, j2


def apply_hunks(original: str, edited: str, some: list[Hunk]) -> str:
    """`original` with some of the hunks of `hunks_of_texts(original, edited)`."""
    parts, at = [], 0
    for i1, i2, j1, j2 in some:
        parts += [original[at:i1], edited[j1:j2]]
        at = i2
    return "".join([*parts, original[at:]])


def _is_format(removed: str, added: str) -> bool:
    if removed.translate(_LOOK).split() == added.translate(_LOOK).split():
        return True
    return all(char.isspace() or char in _FORMAT for char in removed + added)


def _whole_text(text: str, response: str) -> tuple[str, str]:
    match = _TEXT.match(text)
    if match is None:
        raise Rejected("the answer has no lines 'WRONG:' and 'TEXT:'; it must have both, in this order")
    edited = match[2]
    fenced = _FENCE.match(edited.strip())
    if fenced is not None and not response.lstrip().startswith("```"):
        edited = fenced[1]
    # The white space around a text is not what an editor looks at.
    begin = response[: len(response) - len(response.lstrip())]
    end = response[len(response.rstrip()) :] if response.strip() else ""
    return match[1], begin + edited.strip() + end


def _replacements(text: str, response: str) -> tuple[str, str]:
    answer = parse_object(text)
    wrong, some = answer.get("wrong"), answer.get("replacements")
    if not isinstance(wrong, str) or not isinstance(some, list):
        raise Rejected("the answer has no 'wrong' that is text, or no 'replacements' that is a list; it must have both")
    places = sorted(_place(item, index, response) for index, item in enumerate(some))
    for (_, end, _), (start, _, _) in zip(places, places[1:], strict=False):  # noqa: RUF007
        if start < end:
            raise Rejected("two of the replacements overlap; they must not")
    parts, at = [], 0
    for start, end, replace in places:
        parts += [response[at:start], replace]
        at = end
    return wrong, "".join([*parts, response[at:]])


def _place(item: Any, index: int, response: str) -> tuple[int, int, str]:
    """Where a replacement is in the response, and what it puts there."""
    where = f"replacements[{index}]"
    if not isinstance(item, Mapping) or not all(isinstance(item.get(name), str) for name in ("find", "replace")):
        raise Rejected(f"{where} is no object with the texts 'find' and 'replace'; it must be")
    find, occurrence = item["find"], item.get("occurrence")
    if not find:
        raise Rejected(f"{where}.find is empty; it must be text that occurs in the response")
    starts = _occurrences(find, response)
    if not starts:
        raise Rejected(f"{where}.find is {find[:200]!r}, which the response does not have; it must be copied exactly")
    if occurrence is None:
        if len(starts) > 1:
            raise Rejected(f"{where}.find occurs {len(starts)} times; 'occurrence' must say which one is meant")
        occurrence = 1
    if isinstance(occurrence, bool) or not isinstance(occurrence, int) or not 1 <= occurrence <= len(starts):
        raise Rejected(f"{where}.occurrence is {str(occurrence)[:20]}; it must be a number from 1 to {len(starts)}")
    start = starts[occurrence - 1]
    return start, start + len(find), item["replace"]


def _occurrences(find: str, response: str) -> list[int]:
    starts, at = [], response.find(find)
    while at >= 0:
        starts.append(at)
        at = response.find(find, at + len(find))
    return starts


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object that an answer is, or that a code fence in it holds.

    Raises:
        Rejected: there is none.
    """
    stripped = text.strip()
    fenced = _FENCE.search(stripped)
    body = stripped if fenced is None else fenced[1]
    start = body.find("{")
    try:
        value, _ = json.JSONDecoder().raw_decode(body, max(start, 0))
    except (ValueError, RecursionError) as error:
        raise Rejected(f"the answer is no JSON ({str(error)[:100]}); it must be one object") from error
    if not isinstance(value, dict):
        raise Rejected("the answer is JSON, but no object; it must be one")
    return value
