"""The compiled extension `fgrl._C`: loaded when an op first asks for it, with the reason when it cannot be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import ModuleType

import torch  # loads libtorch, which the extension is linked against

CPU_CAPABILITIES = ("default", "avx2", "avx512", "avx512_bf16")
"""The instruction sets the C++ is compiled for, each of which has all that the one before it has."""


def _use_one_thread() -> None:
    torch.set_num_threads(1)


# A forked child has none of the threads of its parent, and PyTorch's parallel loops, on which these ops run too, would
# wait for them for ever: in a DataLoader PyTorch does the same.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)


def interprets_kernels() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors and in place of C++: Triton's own switch."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@cache
def why_not() -> str | None:
    """Why the C++ ops cannot run, or None when they can. Loads the extension on the first call.

    Raises:
        ValueError: the environment variable FGRL_CPU_CAPABILITY is none of `CPU_CAPABILITIES`.
    """
    if interprets_kernels():
        return "TRITON_INTERPRET is set, which puts interpreted Triton kernels in its place"
    try:
        compiled = import_module("fgrl._C")
    except ModuleNotFoundError:
        return _why_missing()
    except ImportError as error:
        return f"the extension fgrl._C cannot be loaded ({error})"
    if limit := os.environ.get("FGRL_CPU_CAPABILITY"):
        _check_capability("FGRL_CPU_CAPABILITY", limit)
        compiled.limit_cpu_capability(limit)
    return None


def module() -> ModuleType | None:
    """The extension module, or None when it cannot be loaded."""
    return import_module("fgrl._C") if why_not() is None else None


def available() -> bool:
    """Whether the C++ ops can run."""
    return why_not() is None


def cpu_capability() -> str | None:
    """The instruction set that the C++ ops run on, one of `CPU_CAPABILITIES`; None where they cannot run.

    The best one of this processor, within `limit_cpu_capability` and the environment variable FGRL_CPU_CAPABILITY.
    """
    compiled = module()
    return None if compiled is None else str(compiled.cpu_capability())


@contextmanager
def limit_cpu_capability(limit: str) -> Iterator[None]:
    """Inside the `with` block C++ ops use no better instruction set than `limit`, in all threads of the process.

    To have the results of another processor, to the bit; ATEN_CPU_CAPABILITY does the same for PyTorch's own ops. The
    environment variable FGRL_CPU_CAPABILITY sets the limit of a whole process. Without the extension it does nothing.

    Args:
        limit: one of `CPU_CAPABILITIES`; one that the processor does not have is no limit.

    Raises:
        ValueError: `limit` is another.
    """
    _check_capability("limit", limit)
    compiled = module()
    if compiled is None:
        yield
        return
    before = compiled.limit_cpu_capability(limit)
    try:
        yield
    finally:
        compiled.limit_cpu_capability(before)


def imported_from() -> Path:
    """The folder of the package that runs."""
    return Path(__file__).resolve().parent


def installed_at() -> list[Path]:
    """The folders of the packages that pip installed, in the order of `sys.path`."""
    return [folder for folder, _ in _installs()]


@cache
def was_left_out() -> bool:
    """Whether somebody asked for no extension: installed with FGRL_SKIP_EXT=1, or TRITON_INTERPRET is set."""
    return interprets_kernels() or any(folder == imported_from() and is_pure for folder, is_pure in _installs())


def _installs() -> list[tuple[Path, bool]]:
    """The folder of each installed package, and whether it was built without the extension."""
    found = []
    for distribution in distributions(name="fgrl"):
        wheel = distribution.read_text("WHEEL")
        if wheel is not None:  # the egg-info that a build leaves in a source tree is no install
            found.append((_folder(distribution), "Root-Is-Purelib: true" in wheel))
    return found


def _folder(distribution: Distribution) -> Path:
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return Path(origin["url"].removeprefix("file://")).resolve() / "fgrl"
    return Path(str(distribution.locate_file("fgrl"))).resolve()


def _why_missing() -> str:
    if was_left_out():
        return "the extension fgrl._C was left out of this install (FGRL_SKIP_EXT=1)"
    here, installed = imported_from(), installed_at()
    if here in installed:
        return f"the extension fgrl._C is missing from {here}; install fgrl again"
    reason = f"fgrl is imported from {here}, a source tree without the extension fgrl._C"
    if installed:
        return f"{reason}, and the installed package is {installed[0]}; start Python in another folder"
    return f"{reason}; install it with pip install"


def _check_capability(name: str, value: str) -> None:
    if value not in CPU_CAPABILITIES:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(CPU_CAPABILITIES)}")
