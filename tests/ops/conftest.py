"""What the tests of the ops share: running the same test on the fused implementation and on the reference.

A test that compares C++ with something runs on every instruction set that this processor has, whichever of them users
get here: `each_backend` and `each_cpu_capability`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import fgrl
from fgrl import extension
from fgrl.extension import interprets_kernels


def cpu_capabilities() -> list[str]:
    """The instruction sets C++ ops can run on here; where there are none, one that stands for what runs instead."""
    best = None if interprets_kernels() else extension.cpu_capability()
    names = extension.CPU_CAPABILITIES
    return ["default"] if best is None else list(names[: names.index(best) + 1])


@pytest.fixture(params=cpu_capabilities())
def each_cpu_capability(request: Any) -> Iterator[str]:
    """C++ ops on each instruction set that this processor has."""
    with extension.limit_cpu_capability(request.param):
        yield request.param


@pytest.fixture(params=[*cpu_capabilities(), *([] if interprets_kernels() else ["reference"])])
def each_backend(request: Any) -> Iterator[None]:
    """On what a user gets here, with each instruction set, and on the specification, which has to hold by itself.

    Where Triton kernels are interpreted they are what a user gets; the rest is for the process that interprets none.
    """
    if request.param == "reference":
        with fgrl.use_backend("reference"):
            yield
    else:
        with extension.limit_cpu_capability(request.param):
            yield
