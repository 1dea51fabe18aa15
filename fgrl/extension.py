"""The compiled extension `fgrl._C`: loaded when an op first asks for it, with the reason when it cannot be."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from types import ModuleType

import torch  # noqa: F401  (loads libtorch, which the extension is linked against)


def interprets_kernels() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors and in place of C++: Triton's own switch."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@cache
def why_not() -> str | None:
    """Why the C++ ops cannot run, or None when they can. Loads the extension on the first call."""
    if interprets_kernels():
        return "TRITON_INTERPRET is set, which puts interpreted Triton kernels in its place"
    try:
        import_module("fgrl._C")
    except ModuleNotFoundError:
        return "the extension fgrl._C is not installed (built with FGRL_SKIP_EXT=1?)"
    except ImportError as error:
        return f"the extension fgrl._C cannot be loaded ({error})"
    return None


def module() -> ModuleType | None:
    """The extension module, or None when it cannot be loaded."""
    return import_module("fgrl._C") if why_not() is None else None


def available() -> bool:
    """Whether the C++ ops can run."""
    return why_not() is None
