"""What every adapter needs: a check of the host's version and functions, and a replacement that can be undone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, MutableMapping
from importlib import metadata
from types import TracebackType
from typing import Any, NamedTuple


def require_version(package: str, supported: str) -> str:
    """The installed version of `package`.

    Args:
        package: name in the package registry.
        supported: versions the adapter was tested with, as in a requirement (`"==1.16.*"`).

    Raises:
        ImportError: `package` is not installed, or in another version.
    """
    remedy = f"it must be {supported}: pip install '{package}{supported}'"
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ImportError(f"{package} is not installed; {remedy}") from None
    from packaging.specifiers import SpecifierSet  # every host depends on it

    if not SpecifierSet(supported).contains(installed, prereleases=True):
        raise ImportError(f"{package} is {installed}; {remedy}")
    return installed


def require_parameters(function: Callable[..., Any], expected: Iterable[str]) -> None:
    """Check that the host's `function` still takes the parameters its replacement was written for, in that order.

    Raises:
        ImportError: it takes others.
    """
    found, wanted = list(inspect.signature(function).parameters), list(expected)
    if found != wanted:
        name = f"{function.__module__}.{function.__qualname__}"
        raise ImportError(f"{name} takes ({', '.join(found)}); it must take ({', '.join(wanted)})")


class Replacement(NamedTuple):
    """`name` of `owner` becomes `value`: an attribute of a module, class or object, or an item of a dictionary."""

    owner: Any
    name: str
    value: Any

    @property
    def place(self) -> str:
        """How messages call it."""
        if isinstance(self.owner, MutableMapping):
            return f"item {self.name!r} of {type(self.owner).__name__}"
        return f"{getattr(self.owner, '__name__', type(self.owner).__name__)}.{self.name}"

    def held(self) -> MutableMapping[str, Any]:
        """What `owner` itself holds, without what it inherits."""
        return self.owner if isinstance(self.owner, MutableMapping) else vars(self.owner)

    def put(self, value: Any) -> None:
        if isinstance(self.owner, MutableMapping):
            self.owner[self.name] = value
        else:
            setattr(self.owner, self.name, value)

    def remove(self) -> None:
        if isinstance(self.owner, MutableMapping):
            del self.owner[self.name]
        else:
            delattr(self.owner, self.name)


_ABSENT = object()
_patched: dict[tuple[int, str], str] = {}  # places that a patch holds now, with the patch's name


class Patch:
    """Replacements in a host that are made together and can be undone.

    >>> import types
    >>> host = types.SimpleNamespace(loss=abs)
    >>> with Patch("example", [Replacement(host, "loss", max)]):
    ...     host.loss is max
    True
    >>> host.loss is abs
    True
    """

    def __init__(self, name: str, replacements: Iterable[Replacement]) -> None:
        """`name` is what messages call this patch. Nothing is replaced before `apply`."""
        self.name = name
        self.replacements = list(replacements)
        self._before: list[Any] | None = None

    @property
    def applied(self) -> bool:
        return self._before is not None

    def apply(self) -> Patch:
        """Make every replacement, or none; the patch itself is returned.

        Raises:
            RuntimeError: a patch holds one of the places already.
            ImportError: the host has no such attribute. A dictionary may lack the item: `undo` takes it out again.
        """
        for replacement in self.replacements:
            if (holder := _patched.get(_key(replacement))) is not None:
                raise RuntimeError(f"{replacement.place} is patched already, by {holder}; undo() that patch first")
            if not isinstance(replacement.owner, MutableMapping) and not hasattr(replacement.owner, replacement.name):
                raise ImportError(f"{replacement.place} is missing; {self.name} must be made for this version")
        self._before = [replacement.held().get(replacement.name, _ABSENT) for replacement in self.replacements]
        for replacement in self.replacements:
            replacement.put(replacement.value)
            _patched[_key(replacement)] = self.name
        return self

    def undo(self) -> None:
        """Put back what was there before; without effect if the patch is not applied.

        Raises:
            RuntimeError: somebody replaced one of the places since. Nothing is put back then.
        """
        if self._before is None:
            return
        for replacement in self.replacements:
            if replacement.held().get(replacement.name) is not replacement.value:
                raise RuntimeError(f"{replacement.place} was replaced again after {self.name}; undo that first")
        for replacement, before in zip(self.replacements, self._before, strict=True):
            if before is _ABSENT:
                replacement.remove()
            else:
                replacement.put(before)
            del _patched[_key(replacement)]
        self._before = None

    def __enter__(self) -> Patch:
        return self if self.applied else self.apply()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


def _key(replacement: Replacement) -> tuple[int, str]:
    return id(replacement.owner), replacement.name
