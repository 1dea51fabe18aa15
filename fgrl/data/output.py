"""Output files and folders that appear whole or not at all.

Everything that this library writes goes into a draft beside its target, is made durable, and is renamed when it is
complete. A run that fails, is interrupted or is killed leaves an existing target as it was.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

StrPath = str | os.PathLike[str]


@contextmanager
def open_output(path: StrPath) -> Iterator[BinaryIO]:
    """Open `path` for writing bytes; it is replaced when the block ends, and untouched when the block raises.

    Missing parent folders are made, a link keeps pointing at its target, which is replaced, and an existing file keeps
    its permissions. What cannot be replaced is written directly: `-` (standard output), a device, a pipe, and a file
    that this process has as its standard output or error.

    Raises:
        OSError: `path` is a folder or cannot be written. This is known before the block runs.
    """
    descriptor = _standard_stream(path)
    if descriptor is not None:
        stream = sys.stdout if descriptor == 1 else sys.stderr
        stream.flush()
        yield stream.buffer
        stream.buffer.flush()
        return
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if target.exists() and not target.is_file():
        with open(target, "wb") as file:
            yield file
        return
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    with _naming(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(target)
        file = open(draft, "xb")  # noqa: SIM115
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_text(path: StrPath, text: str) -> None:
    """Write `text` as UTF-8, as `open_output` does; an unpaired surrogate is written as `\\udXXX`."""
    with open_output(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def json_line(record: Mapping[str, Any]) -> bytes:
    """`record` as one line of JSON in UTF-8; text that UTF-8 cannot hold (an unpaired surrogate) is escaped."""
    try:
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        line = json.dumps(record, separators=(",", ":")).encode()
    return line + b"\n"


def publish(draft: Path, target: Path) -> None:
    """Rename a complete and synced `draft` to `target`, durably, with the permissions `target` had."""
    if target.exists():
        os.chmod(draft, stat.S_IMODE(target.stat().st_mode))
    os.replace(draft, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable; a folder that cannot be synced is left to the system."""
    if not path.is_dir():
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def open_output_folder(path: StrPath) -> Iterator[Path]:
    """A draft folder whose files and folders move into `path` when the block ends; none does when it raises.

    Entries of `path` that have the name of a new one are replaced, the others stay.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
    with _naming(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(target)
        draft.mkdir()
    try:
        yield draft
        target.mkdir(exist_ok=True)
        for entry in sorted(draft.iterdir()):
            _replace_entry(entry, target / entry.name)
        sync(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_outputs(outputs: Mapping[str, StrPath | None], inputs: Mapping[str, StrPath | None]) -> None:
    """Raise `ValueError` where an output is an input, or two outputs are one file, whatever their spelling.

    An existing file of a folder that is read, such as the weights of a model, is an input; a new one is not.

    Args:
        outputs: Paths that will be written, by the name of their option; None where it is not given.
        inputs: Paths that will be read, in the same form. A name that is no path (of a model on the hub) is no file.
    """
    written = {name: path for name, path in outputs.items() if path is not None}
    for name, path in written.items():
        for other, read in inputs.items():
            if read is not None and same_file(path, read):
                raise ValueError(f"{name} is {os.fspath(path)}, the file that {other} reads; it must be another one")
            if read is not None and _is_inside(path, read):
                raise ValueError(
                    f"{name} is {os.fspath(path)}, a file of the folder that {other} reads; it must be a new one"
                )
        for other, second in written.items():
            if other > name and same_file(path, second):
                raise ValueError(f"{name} is {os.fspath(path)}, the same as {other}; it must be another file")


def same_file(one: StrPath, other: StrPath) -> bool:
    """Whether two paths name one regular file or folder, through links and other spellings too."""
    try:
        first, second = os.stat(one), os.stat(other)
    except (OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)
    return os.path.samestat(first, second) and (stat.S_ISREG(first.st_mode) or stat.S_ISDIR(first.st_mode))


def _is_inside(path: StrPath, folder: StrPath) -> bool:
    """Whether `path` is an existing regular file anywhere below `folder`."""
    file, root = os.path.realpath(path), os.path.realpath(folder)
    return os.path.isfile(file) and os.path.isdir(root) and Path(root) in Path(file).parents


def _standard_stream(path: StrPath) -> int | None:
    """1 or 2 where `path` is standard output or error, by name or as the regular file it is redirected to."""
    if os.fspath(path) == "-":
        return 1
    for descriptor, stream in ((1, sys.__stdout__), (2, sys.__stderr__)):
        with suppress(OSError, ValueError, AttributeError):
            if stream is not None and os.path.samestat(os.stat(path), os.fstat(stream.fileno())):
                return descriptor
    return None


def _draft(target: Path) -> Path:
    return target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex[:12]}.draft")


@contextmanager
def _naming(path: StrPath) -> Iterator[None]:
    """Errors name the path that was asked for, not its draft."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error


def _replace_entry(entry: Path, target: Path) -> None:
    """Move a file or folder to `target`; a folder cannot be replaced in one step, and is moved aside first."""
    if not os.path.lexists(target) or not (target.is_dir() or entry.is_dir()):
        os.replace(entry, target)
        return
    aside = entry.with_name(entry.name + ".replaced")
    os.replace(target, aside)
    try:
        os.replace(entry, target)
    except BaseException:
        os.replace(aside, target)
        raise
