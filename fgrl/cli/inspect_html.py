"""The page of `fgrl inspect`: findings, numbers, charts, and the strangest rows as tracked changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html import escape

from fgrl.data.hunks import hunks_of_texts
from fgrl.data.inspection import Summary, findings
from fgrl.data.inspection.summary import SHARE_BINS, StrangeRow
from fgrl.pages.changes import STYLE, prompt_details, tracked_changes
from fgrl.pages.document import bar_chart, document, table


def sections(summary: Summary) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The numbers, as titles with names and values: what the terminal shows too."""
    rows = max(summary.rows, 1)
    edits = sum(summary.hunk_words.values())
    yield (
        "rows",
        [
            ("rows", f"{summary.rows:,}"),
            ("words of the originals", f"{summary.words:,}"),
            ("share of words edited, mean over rows", f"{summary.all.mean_share:.1%}"),
            ("share of words edited, over all words", f"{summary.edited_words / max(summary.words, 1):.1%}"),
            ("places edited a row", f"{edits / rows:.2f}"),
            ("places edited that are one word long", f"{summary.hunk_words[1] / max(edits, 1):.1%}"),
        ],
    )
    if summary.tokens is not None:
        counts = summary.tokens
        wider = counts.edited_token_characters / max(counts.edited_characters, 1)
        yield (
            "tokens",
            [
                ("tokens a response", f"{counts.tokens / max(counts.sides, 1):.1f}"),
                ("share of tokens edited", f"{counts.edited_tokens / max(counts.tokens, 1):.1%}"),
                ("characters of edited tokens a changed character", f"{wider:.2f}"),
                ("prompts cut by truncation", f"{counts.prompts_cut:,}"),
                ("edited tokens lost by truncation", f"{counts.edits_cut:,}"),
            ],
        )
    if summary.agreement is not None:
        agreement = summary.agreement
        yield (
            "annotators",
            [
                ("responses with several annotators", f"{agreement.responses:,}"),
                ("words that both of a pair changed (F1)", f"{agreement.f1:.3f}"),
                ("agreement beyond chance (kappa)", f"{agreement.kappa:.3f}"),
            ],
        )
    if len(summary.groups) > 1:
        yield (
            "groups",
            [
                (f"{kind}: {name}", f"{group.rows:,} rows, {group.mean_share:.1%} edited")
                for (kind, name), group in sorted(summary.groups.items())
            ],
        )
    if summary.frequent:
        yield (
            "most frequent replacements"
            + (f" (at most {summary.frequent_error:,} more)" * bool(summary.frequent_error)),
            [(f"{old or '(nothing)'} -> {new or '(nothing)'}", f"{count:,}") for (old, new), count in summary.frequent],
        )


def render(summary: Summary, name: str) -> str:
    """The page.

    Args:
        summary: of the file.
        name: what the page calls it.
    """
    found = findings(summary)
    rows = [[f.name, f"{f.count:,}", f"{f.share:.2%}", f"{f.limit:.2%}", ", ".join(map(str, f.lines))] for f in found]
    parts = [
        f"<h1>Edits: {escape(name)}</h1>",
        '<p class="meta">Shares are of words and punctuation marks, of the longer side of a pair. Marked: more than is '
        "normal. Duplicates and held-out prompts are counted with a filter that errs once in a million rows.</p>",
        table(["finding", "rows", "share", "normal up to", "first lines"], rows, off=[f.off for f in found]),
        "<section><h2>Distributions</h2>",
        bar_chart("share of words edited, in %: rows", _shares(summary.all.shares)),
        bar_chart("places edited a row: rows", _counts(summary.hunks)),
        bar_chart("words a place: places", _counts(summary.hunk_words)),
        bar_chart("words of the original, up to: rows", _powers(summary.lengths)),
    ]
    if summary.tokens is not None:
        parts.append(bar_chart("tokens of prompt and longer response, up to: rows", _powers(summary.tokens.lengths)))
    if len(summary.groups) > 1:
        parts += [
            bar_chart(f"{kind}: {value}, share of words edited, in %", _shares(group.shares))
            for (kind, value), group in sorted(summary.groups.items(), key=lambda item: -item[1].rows)[:12]
        ]
    parts.append("</section>")
    for title, numbers in sections(summary):
        parts.append(f"<section><h2>{escape(title)}</h2>{table(['', ''], [list(row) for row in numbers])}</section>")
    parts.append(f"<h1>The {len(summary.strange)} strangest rows</h1>")
    parts += map(_row, summary.strange)
    return document(f"Edits: {name}", "\n".join(parts), style=STYLE)


def _row(row: StrangeRow) -> str:
    changes = tracked_changes(row.original, row.edited, hunks_of_texts(row.original, row.edited))
    return (
        f'<section>\n<h2>Row {row.line}</h2>\n<p class="meta">{escape(row.why)}</p>'
        f"{prompt_details(row.prompt)}{changes}</section>"
    )


def _shares(shares: Counter[int]) -> list[tuple[str, int]]:
    step = 100 // SHARE_BINS
    return [(f"{step * (index + 1)}", shares[index]) for index in range(SHARE_BINS)]


def _counts(counts: Counter[int]) -> list[tuple[str, int]]:
    return [(f"{index}" if index < 20 else "20+", counts[index]) for index in range(max(counts, default=0) + 1)]


def _powers(counts: Counter[int]) -> list[tuple[str, int]]:
    return [(f"{2**index - 1}", counts[index]) for index in range(max(counts, default=0) + 1)]
