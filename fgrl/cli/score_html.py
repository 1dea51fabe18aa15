"""One self-contained HTML page of scored rows: no script, nothing loaded from anywhere, all text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fgrl.cli._scoring import ScoredRow, ScoredSide

_STYLE = """
body { font: 16px/1.7 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1e21; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 0 0 .3rem; }
section { border-top: 1px solid #d8dbe0; padding: 1rem 0; }
.meta { color: #666c75; font-size: .85rem; }
.tokens, .prompt { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem; }
.prompt { color: #444a52; background: #f5f6f8; padding: .5rem; }
.t { border-radius: 2px; padding: .1em 0; }
.removed { text-decoration: line-through 2px; }
.added { text-decoration: underline 2px; text-underline-offset: .2em; font-weight: 600; }
.error { outline: 2px dotted #b26a00; outline-offset: -1px; }
.bar { display: inline-block; width: 12rem; height: .8rem; vertical-align: middle; }
"""
_NEGATIVE, _POSITIVE = "200,50,40", "30,100,200"
_SHADED = 0.75  # opacity at and beyond the end of the scale: black text stays readable on it


def render(rows: Sequence[ScoredRow], *, model: str, total: int) -> str:
    """The page.

    Args:
        rows: rows to show. The colour scale ends at the 95th percentile of their absolute rewards.
        model: name of the reward model.
        total: how many rows there were, of which `rows` are the first.
    """
    scale = _scale(rows)
    shown = f"{len(rows)} rows" if len(rows) == total else f"the first {len(rows)} of {total} rows"
    body = "\n".join(_row(row, scale) for row in rows)
    gradient = f"linear-gradient(90deg,rgba({_NEGATIVE},{_SHADED}),#fff,rgba({_POSITIVE},{_SHADED}))"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Token rewards: {escape(model)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Token rewards</h1>
<p class="meta">Reward model {escape(model)}; {shown}. Point at a token for its reward.</p>
<p class="meta">{-scale:.3g} <span class="bar" style="background:{gradient}"></span> +{scale:.3g}
&ensp;<span class="removed">removed by the edit</span>&ensp;<span class="added">added by the edit</span>\
&ensp;<span class="error">marked wrong by a human</span></p>
{body}
</body>
</html>
"""


def _row(row: ScoredRow, scale: float) -> str:
    margin = "" if row.margin is None else f", margin {row.margin:+.3f}"
    parts = [f'<section>\n<h2>Row {row.line}</h2>\n<p class="meta">mean reward {_mean(row.original):+.3f}{margin}</p>']
    prompt = row.prompt if isinstance(row.prompt, str) else "\n".join(map(_message, row.prompt))
    if prompt:
        parts.append(
            f'<details><summary class="meta">prompt</summary><div class="prompt">{escape(prompt)}</div></details>'
        )
    name = "response" if row.edited is None else "original"
    parts.append(_side(row.original, name, "removed", scale))
    if row.edited is not None:
        parts.append(_side(row.edited, "edited", "added", scale))
    return "\n".join([*parts, "</section>"])


def _side(side: ScoredSide, name: str, edit_class: str, scale: float) -> str:
    edits = side.edits or [False] * len(side.tokens)
    errors = side.errors or [False] * len(side.tokens)
    spans = [
        _token(token, reward, ["t", *([edit_class] if edit else []), *(["error"] if error else [])], scale)
        for token, reward, edit, error in zip(side.tokens, side.rewards, edits, errors, strict=True)
    ]
    return f'<p class="meta">{name}</p>\n<div class="tokens">{"".join(spans)}</div>'


def _token(token: str, reward: float, classes: list[str], scale: float) -> str:
    colour = _POSITIVE if reward > 0 else _NEGATIVE
    opacity = _SHADED * min(abs(reward) / scale, 1.0)
    return (
        f'<span class="{" ".join(classes)}" style="background:rgba({colour},{opacity:.3f})" '
        f'title="{reward:+.4f}">{escape(token)}</span>'
    )


def _message(message: dict[str, str]) -> str:
    return f"{message.get('role', '')}: {message.get('content', '')}"


def _mean(side: ScoredSide) -> float:
    return sum(side.rewards) / max(len(side.rewards), 1)


def _scale(rows: Sequence[ScoredRow]) -> float:
    sides = [side for row in rows for side in (row.original, row.edited) if side is not None]
    sizes = sorted(abs(reward) for side in sides for reward in side.rewards if reward == reward)
    return (sizes[int(0.95 * (len(sizes) - 1))] if sizes else 0.0) or 1.0
