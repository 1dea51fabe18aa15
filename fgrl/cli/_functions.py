"""Python functions that a flag names: rewards, editors, judges."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fgrl.cli._errors import UsageError


def load_function(flag: str, name: str) -> Any:
    """The function that a flag names as `module:function`; the module may be a file in the current folder."""
    module, separator, function = name.partition(":")
    if not separator:
        raise UsageError(f"{flag} is {name!r}; it must be MODULE:FUNCTION")
    try:
        with _current_folder_importable():
            found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{flag} {name} cannot be loaded: {error}") from error
    if not callable(found):
        raise UsageError(f"{flag} is {name}, of type {type(found).__name__}; it must be a function")
    return found


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """As for `python -m`: an installed script has its own folder on `sys.path`, not the one it is called from."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
