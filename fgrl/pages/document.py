"""The frame of a page: a policy that forbids scripts and loading, a style, a body; and tables and bars in it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
body { font: 16px/1.7 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1e21; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 0 0 .3rem; }
section { border-top: 1px solid #d8dbe0; padding: 1rem 0; }
.meta { color: #666c75; font-size: .85rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #d8dbe0; overflow-wrap: anywhere; }
th:first-child, td:first-child { text-align: left; white-space: pre-wrap; }
.off { background: #fff3d6; }
"""
_BAR_WIDTH, _BAR_HEIGHT, _AXIS = 22, 120, 34


def document(title: str, body: str, *, style: str = "") -> str:
    """The page. `body` and `style` are HTML and CSS already; `title` is escaped here."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, off: Sequence[bool] = ()) -> str:
    """A table; rows that `off` marks are highlighted."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = []
    for index, row in enumerate(rows):
        mark = ' class="off"' if index < len(off) and off[index] else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return "<table>\n<tr>" + head + "</tr>\n" + "\n".join(lines) + "\n</table>"


def bar_chart(title: str, bars: Sequence[tuple[str, int]]) -> str:
    """Bars with a label each, as inline SVG.

    Args:
        title: written above.
        bars: label and height, from left to right.
    """
    width, top = max(len(bars), 1) * _BAR_WIDTH, max((count for _, count in bars), default=0) or 1
    parts = [
        f'<figure><figcaption class="meta">{escape(title)}</figcaption>'
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_BAR_HEIGHT + _AXIS}" width="{width}" '
        f'height="{_BAR_HEIGHT + _AXIS}" role="img" aria-label="{escape(title)}" font-size="8">'
    ]
    for index, (label, count) in enumerate(bars):
        height = _BAR_HEIGHT * count / top
        x = index * _BAR_WIDTH
        parts.append(
            f'<rect x="{x + 1}" y="{_BAR_HEIGHT - height + 12:.1f}" width="{_BAR_WIDTH - 2}" height="{height:.1f}" '
            f'fill="#1764ab"><title>{escape(label)}: {count:,}</title></rect>'
            f'<text x="{x + _BAR_WIDTH / 2}" y="{_BAR_HEIGHT + 24}" text-anchor="middle">{escape(label)}</text>'
        )
    return "".join(parts) + "</svg></figure>"
