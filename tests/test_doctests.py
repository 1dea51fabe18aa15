"""The examples of the documentation run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fgrl.ops
import fgrl.reference

# Modules that need torch alone; every op must have an example.
MODULES = [
    "fgrl",
    "fgrl.alignment",
    "fgrl.backend",
    "fgrl.extension",
    "fgrl.integrations._host",
    "fgrl.types",
    *[f"fgrl.{package.__name__.rpartition('.')[2]}.{module.name}" for package in (fgrl.ops, fgrl.reference)
      for module in pkgutil.iter_modules(package.__path__)],
]  # fmt: skip
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert results.failed == 0


@pytest.mark.parametrize("op", [name for name in fgrl.ops.__all__ if name.islower()])
def test_every_op_has_an_example(op: str) -> None:
    module = importlib.import_module(f"fgrl.ops.{op}")
    examples = [test for test in doctest.DocTestFinder().find(module) if test.name.endswith(f".{op}") and test.examples]
    assert examples
