"""Which implementation an op runs: the choice, the reason for it, and the context manager that overrides it.

Every op has a plain PyTorch version in `fgrl.reference`. Faster versions are listed in `_IMPLEMENTATIONS`
in the order in which "auto" prefers them; they sit behind one operator, `torch.ops.fgrl.<op>`, which PyTorch dispatches
by device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple, get_args

import torch

from fgrl import extension
from fgrl.extension import interprets_kernels

Backend = Literal["auto", "triton", "cpp", "reference"]

_IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "align_edits": ("cpp",),
    "token_reward_head": ("cpp", "triton"),
    "edit_preference_loss": ("cpp", "triton"),
    "gae": ("cpp", "triton"),
    "token_advantages": ("cpp", "triton"),
    "whiten": ("cpp", "triton"),
    "ppo_loss": ("cpp", "triton"),
    "value_loss": ("cpp", "triton"),
    "linear_logprobs": ("cpp", "triton"),
    "linear_ppo_loss": ("cpp", "triton"),
}

_requested: ContextVar[Backend] = ContextVar("fgrl_backend", default="auto")


class Choice(NamedTuple):
    """The backend an op will run on, and why, in words for a person."""

    backend: str
    reason: str


def ops() -> list[str]:
    """Names of all ops, in the order of the documentation."""
    return list(_IMPLEMENTATIONS)


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Run every op inside the `with` block on one backend.

    "auto" takes the fastest available implementation. Any other name is a demand: an op that has no such
    implementation, or cannot run it on its inputs' device, raises instead of falling back.

    Args:
        backend: "auto", "triton", "cpp" or "reference".

    Raises:
        ValueError: unknown backend name.

    Example:
        >>> import torch, fgrl
        >>> with fgrl.use_backend("reference"):
        ...     fgrl.ops.gae(torch.tensor([[1.0]]), torch.tensor([[0.25]])).advantages
        tensor([[0.7500]])
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(get_args(Backend))}")
    token = _requested.set(backend)
    try:
        yield
    finally:
        _requested.reset(token)


def explain(op: str, device: torch.device) -> Choice:
    """The backend `op` would run on for inputs on `device`, with the reason.

    Raises:
        RuntimeError: the backend demanded with `use_backend` cannot run this op on this device.
    """
    requested = _requested.get()
    if requested == "reference":
        return Choice("reference", "requested with use_backend")
    candidates = _IMPLEMENTATIONS[op] if requested == "auto" else (requested,)
    reasons = []
    for backend in candidates:
        obstacle = _obstacle(op, backend, device)
        if obstacle is None:
            return Choice(backend, "fastest available" if requested == "auto" else "requested with use_backend")
        reasons.append(f"{backend}: {obstacle}")
    if requested != "auto":
        raise RuntimeError(
            f"{op} cannot run on the requested backend {reasons[0]}; use_backend('auto') or "
            "use_backend('reference') would run it"
        )
    return Choice("reference", "; ".join(reasons) or "the only implementation of this op")


def resolve(op: str, device: torch.device) -> str:
    """Name of the backend `op` runs on for inputs on `device`; see `explain`.

    torch.compile asks once, while it traces: a graph keeps the backend it was compiled with.
    """
    return explain(op, device).backend


# What torch.compiler.assume_constant_result sets, which would import the compiler and Triton with every `import fgrl`.
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def reference(op: str, device: torch.device) -> Callable[..., Any]:
    """`fgrl.reference.<op>`, with autocast off inside `torch.autocast`: an op says itself what it computes in.

    The backward pass is not in its hands: PyTorch runs that under the autocast in which `backward` is called, so call
    it outside.
    """
    from fgrl import reference

    function = getattr(reference, op)
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return partial(_without_autocast, function, device.type)
    return function


def _without_autocast(function: Callable[..., Any], device_type: str, *args: Any, **options: Any) -> Any:
    with torch.autocast(device_type, enabled=False):
        return function(*args, **options)


def _obstacle(op: str, backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot run `op` on `device`, or None when it can."""
    if backend not in _IMPLEMENTATIONS[op]:
        return "it has no such implementation"
    if backend == "cpp":
        if device.type != "cpu":
            return f"it runs on CPU tensors, and these are on {device.type}"
        return extension.why_not()
    if device.type == "cpu" and not interprets_kernels():
        return "it runs on GPU tensors, and these are on cpu"
    try:
        import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    return None
