"""At the door of the command: a user's mistake becomes one sentence, a bug keeps its traceback."""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

_POINTER = b"version https://git-lfs"
_DELIBERATE = (ValueError, TypeError, RuntimeError, ImportError, OSError)


class UsageError(ValueError):
    """A command line, configuration or input that cannot be used: exit code 2."""


def user_error(error: BaseException) -> str | None:
    """The sentence for a user's mistake, or None for a bug.

    A mistake is what this package refuses with a `raise` of its own, what the operating system says about a file, and
    memory that does not suffice. Everything else, such as a `ValueError` from inside a library that was called or a
    wrong index here, is a bug of ours, and only its traceback helps.
    """
    import torch

    if isinstance(error, OSError) and error.errno is not None and not _raised_here(error):
        name = error.filename if error.filename is not None else "the output"
        return f"{_text(name)} cannot be used: {error.strerror}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"the memory is too small for this run ({_first_line(error)}); --batch-size must be smaller"
    if isinstance(error, _DELIBERATE) and _raised_here(error):
        return _one_line(error)
    return None


@contextmanager
def usable(flag: str, name: str | None) -> Iterator[None]:
    """Turn a failure to open what `flag` names into a `UsageError` that names the flag.

    Whatever a library raises while it opens somebody's files says that they cannot be used: each has its own class for
    it. A mistake in this package, which is no `raise` of its own, stays what it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (MemoryError, UsageError)) or (_is_here(error) and not _raised_here(error)):
            raise
        pointer = _lfs_pointer(name)
        if pointer is not None:
            raise UsageError(
                f"{flag} {name} cannot be used: {pointer} is a Git LFS pointer; it must be the file itself "
                "(git lfs pull)"
            ) from error
        kind = "" if isinstance(error, (OSError, ValueError, ImportError)) else f"{type(error).__name__}: "
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _one_line(error)
        raise UsageError(f"{flag} {name} cannot be used: {kind}{reason}") from error


def leave_closed_pipe() -> None:
    """Nobody reads standard output any more: what Python would flush at its end goes nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _raised_here(error: BaseException) -> bool:
    """Whether a `raise` statement of this package made `error`, rather than something that it called or did wrong."""
    last = _last(error.__traceback__)
    if last is None or not _is_here(error):
        return False
    return last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _is_here(error: BaseException) -> bool:
    last = _last(error.__traceback__)
    return last is not None and str(last.tb_frame.f_globals.get("__name__")).partition(".")[0] == "fgrl"


def _last(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _lfs_pointer(name: str | None) -> str | None:
    """The first file of a folder, or the file, that git left as a pointer to the real one."""
    path = Path(name or "")
    with suppress(OSError):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                with open(file, "rb") as start:
                    if start.read(len(_POINTER)) == _POINTER:
                        return file.name
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _text(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else str(name)
