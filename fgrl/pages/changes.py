"""Edits and token rewards on a page: tracked changes, and tokens shaded by a number."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
.tokens, .prompt { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem; }
.prompt { color: #444a52; background: #f5f6f8; padding: .5rem; }
.t { border-radius: 2px; padding: .1em 0; }
.removed { text-decoration: line-through 2px; }
.added { text-decoration: underline 2px; text-underline-offset: .2em; font-weight: 600; }
del.removed { background: rgba(200,50,40,.18); } ins.added { background: rgba(30,100,200,.15); }
.error { outline: 2px dotted #b26a00; outline-offset: -1px; }
.bar { display: inline-block; width: 12rem; height: .8rem; vertical-align: middle; }
"""
_NEGATIVE, _POSITIVE = "200,50,40", "30,100,200"
_SHADED = 0.75  # opacity at and beyond the end of the scale: black text stays readable on it


def shaded(token: str, value: float, scale: float, classes: Sequence[str] = ()) -> str:
    """A token coloured by `value`, red below 0 and blue above; the colour is full at `scale`."""
    colour = _POSITIVE if value > 0 else _NEGATIVE
    opacity = _SHADED * min(abs(value) / scale, 1.0)
    return (
        f'<span class="{" ".join(["t", *classes])}" style="background:rgba({colour},{opacity:.3f})" '
        f'title="{value:+.4f}">{escape(token)}</span>'
    )


def colour_scale(scale: float) -> str:
    """What the colours of `shaded` mean."""
    gradient = f"linear-gradient(90deg,rgba({_NEGATIVE},{_SHADED}),#fff,rgba({_POSITIVE},{_SHADED}))"
    return f'{-scale:.3g} <span class="bar" style="background:{gradient}"></span> +{scale:.3g}'


def prompt_details(prompt: str) -> str:
    """A prompt that opens on demand; nothing for an empty one."""
    if not prompt:
        return ""
    return f'<details><summary class="meta">prompt</summary><div class="prompt">{escape(prompt)}</div></details>'


def tracked_changes(original: str, edited: str, hunks: Sequence[tuple[int, int, int, int]]) -> str:
    """The edited text with what was removed struck out and what was added underlined.

    Args:
        original: text before the edit.
        edited: text after it.
        hunks: `(i1, i2, j1, j2)`, characters: `original[i1:i2]` became `edited[j1:j2]`; in order.
    """
    parts, at = [], 0
    for i1, i2, j1, j2 in hunks:
        parts.append(escape(edited[at:j1]))
        if i2 > i1:
            parts.append(f'<del class="removed">{escape(original[i1:i2])}</del>')
        if j2 > j1:
            parts.append(f'<ins class="added">{escape(edited[j1:j2])}</ins>')
        at = j2
    return f'<div class="tokens">{"".join([*parts, escape(edited[at:])])}</div>'
