"""Errors have one form, "X is ...; it must be ...", without a full stop; read from the source of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REFUSALS = {"ValueError", "TypeError", "UsageError", "RowError", "FileNotFoundError", "FileExistsError"}


def sentences(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each refusal that `source` writes out; f-strings insert the file's constants only."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
            continue
        message = node.exc.args[0]
        name = node.exc.func.id if isinstance(node.exc.func, ast.Name) else ""
        if name in REFUSALS and isinstance(message, (ast.Constant, ast.JoinedStr)):
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            text = "".join(_written(part, constants) for part in parts)
            if " " in text.strip():
                yield node.lineno, text


def _written(part: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    inserted = part.value if isinstance(part, ast.FormattedValue) else None
    return constants.get(inserted.id, "") if isinstance(inserted, ast.Name) else ""


def has_the_form(text: str) -> bool:
    """`; ... must ...` and no full stop. A reason that somebody else gives (a library, the system) follows a colon."""
    quoted = "cannot be " in text and ":" in text
    within = text.strip(" ").startswith(("(", "after", "a value would", "Parquet has", "field  is there twice"))
    return not text.endswith(".") and ("must" in text.partition(";")[2] or quoted or within)


FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "fgrl").rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_errors_have_one_form(file: str) -> None:
    found = [(line, text) for line, text in sentences((ROOT / file).read_text("utf-8")) if not has_the_form(text)]
    assert not found, f"{file} has errors of another form: {found}"


@pytest.mark.parametrize("text", ["x must be 1, got 2.", "x is 2; it must be 1.", "x is wrong", "x must be 1"])
def test_another_form_is_seen(text: str) -> None:
    assert list(sentences(f"raise ValueError({text!r})")) == [(1, text)]
    assert not has_the_form(text)
