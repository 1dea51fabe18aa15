"""Every table of the README, and its figure, comes from a committed result."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402


def test_pages_and_figure_are_what_the_results_say() -> None:
    for page in report.SECTIONS:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert report.render(text, page) == text
    assert report.FIGURE.read_text(encoding="utf-8") == report.figure()


def test_a_number_typed_by_hand_is_written_over() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index("<!-- align_edits:start -->")
    assert report.render(text[:start] + text[start:].replace("x |", "x  |", 1)) == text


def test_missing_markers_are_an_error() -> None:
    with pytest.raises(ValueError, match="no markers for 'demo'"):
        report.render("# A README without markers")
