"""Kernel tests run where kernels do: on a GPU, or in Triton's interpreter on CPU tensors.

    TRITON_INTERPRET=1 python -m pytest tests/kernels tests/ops

Triton reads the variable when it decorates a kernel, so the interpreter takes a process of its own (`make test` starts
one); there the kernels also serve the tests of tests/ops. Without a GPU and without the variable only test_resources.py
has something to do, which compiles and so cannot be interpreted. Files here need names that no other folder has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import fgrl
from fgrl.backend import interprets_kernels

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]
COMPILED_ONLY = "test_resources.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if item.path.name == COMPILED_ONLY:
            if interprets_kernels():
                item.add_marker(pytest.mark.skip(reason="compiles kernels: not with TRITON_INTERPRET=1"))
        elif not interprets_kernels() and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="kernels need a GPU or TRITON_INTERPRET=1"))


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run: "cpu" in the interpreter, else "cuda"."""
    return torch.device("cpu" if interprets_kernels() else "cuda")


@pytest.fixture
def launch_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that gives the named ops' launchers other options than those that ship, such as smaller blocks.

    Several blocks of few tokens find the same mistakes sooner. What ships is tested by the tests of tests/ops and by
    those named `test_shipped_*` here.
    """

    def change(*names: str, **options: Any) -> None:
        for name in names:
            module, _, launcher = name.partition(".")
            kernels = import_module(f"fgrl.kernels.{module}")
            monkeypatch.setattr(kernels, launcher, partial(getattr(kernels, launcher), **options))

    return change


@pytest.fixture
def on_triton() -> Iterator[None]:
    """Every op inside the test runs on its kernel or fails."""
    with fgrl.use_backend("triton"):
        yield
