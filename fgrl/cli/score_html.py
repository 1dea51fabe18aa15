"""One self-contained HTML page of scored rows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fgrl.cli._scoring import ScoredRow, ScoredSide
from fgrl.pages.changes import STYLE, colour_scale, prompt_details, shaded
from fgrl.pages.document import document


def render(rows: Sequence[ScoredRow], *, model: str, total: int) -> str:
    """The page.

    Args:
        rows: rows to show. The colour scale ends at the 95th percentile of their absolute rewards.
        model: name of the reward model.
        total: how many rows there were, of which `rows` are the first.
    """
    scale = _scale(rows)
    shown = f"{len(rows)} rows" if len(rows) == total else f"the first {len(rows)} of {total} rows"
    sections = "\n".join(_row(row, scale) for row in rows)
    body = f"""<h1>Token rewards</h1>
<p class="meta">Reward model {escape(model)}; {shown}. Point at a token for its reward.</p>
<p class="meta">{colour_scale(scale)}
&ensp;<span class="removed">removed by the edit</span>&ensp;<span class="added">added by the edit</span>\
&ensp;<span class="error">marked wrong by a human</span></p>
{sections}"""
    return document(f"Token rewards: {model}", body, style=STYLE)


def _row(row: ScoredRow, scale: float) -> str:
    margin = "" if row.margin is None else f", margin {row.margin:+.3f}"
    parts = [f'<section>\n<h2>Row {row.line}</h2>\n<p class="meta">mean reward {_mean(row.original):+.3f}{margin}</p>']
    prompt = row.prompt if isinstance(row.prompt, str) else "\n".join(map(_message, row.prompt))
    if prompt:
        parts.append(prompt_details(prompt))
    name = "response" if row.edited is None else "original"
    parts.append(_side(row.original, name, "removed", scale))
    if row.edited is not None:
        parts.append(_side(row.edited, "edited", "added", scale))
    return "\n".join([*parts, "</section>"])


def _side(side: ScoredSide, name: str, edit_class: str, scale: float) -> str:
    edits = side.edits or [False] * len(side.tokens)
    errors = side.errors or [False] * len(side.tokens)
    spans = [
        shaded(token, reward, scale, [*([edit_class] if edit else []), *(["error"] if error else [])])
        for token, reward, edit, error in zip(side.tokens, side.rewards, edits, errors, strict=True)
    ]
    return f'<p class="meta">{name}</p>\n<div class="tokens">{"".join(spans)}</div>'


def _message(message: dict[str, str]) -> str:
    return f"{message.get('role', '')}: {message.get('content', '')}"


def _mean(side: ScoredSide) -> float:
    return sum(side.rewards) / max(len(side.rewards), 1)


def _scale(rows: Sequence[ScoredRow]) -> float:
    sides = [side for row in rows for side in (row.original, row.edited) if side is not None]
    sizes = sorted(abs(reward) for side in sides for reward in side.rewards if reward == reward)
    return (sizes[int(0.95 * (len(sizes) - 1))] if sizes else 0.0) or 1.0
