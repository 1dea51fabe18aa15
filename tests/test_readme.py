"""Every table of the README, and its figure, comes from a committed result."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import readme  # noqa: E402


def test_readme_and_figure_are_what_the_results_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.render(text) == text
    assert readme.FIGURE.read_text(encoding="utf-8") == readme.figure()


def test_a_number_typed_by_hand_is_written_over() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index("<!-- align_edits:start -->")
    assert readme.render(text[:start] + text[start:].replace("x |", "x  |", 1)) == text


def test_missing_markers_are_an_error() -> None:
    with pytest.raises(ValueError, match="no markers for 'demo'"):
        readme.render("# A README without markers")
