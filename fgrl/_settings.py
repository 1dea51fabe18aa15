"""What the caller has set for the ops of this thread or task: the backend, and whether values are checked.

The settings are read as attributes of this module, `settings.backend` and `settings.checks`. An attribute that a module
computes (PEP 562) is looked up again each time torch.compile decides whether a graph still fits, so a graph compiled
under one setting never runs under another.
"""

from __future__ import annotations

from contextvars import ContextVar

requested_backend: ContextVar[str] = ContextVar("fgrl_backend", default="auto")
requested_checks: ContextVar[str] = ContextVar("fgrl_checks", default="on")


def __getattr__(name: str) -> str:
    if name == "backend":
        return requested_backend.get()
    if name == "checks":
        return requested_checks.get()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
