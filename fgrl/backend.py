"""Which implementation an op runs: the choice, the reason for it, and the context manager that overrides it.

Every op has a plain PyTorch version in `fgrl.reference`. Faster versions are listed in `_IMPLEMENTATIONS`
in the order in which "auto" prefers them; they sit behind one operator, `torch.ops.fgrl.<op>`, which PyTorch dispatches
by device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from typing import Any, Literal, NamedTuple, get_args

import torch

from fgrl import _settings, extension
from fgrl.extension import interprets_kernels
from fgrl.types import is_autocast_enabled

Backend = Literal["auto", "triton", "cpp", "reference"]

_IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "align_edits": ("cpp",),
    "token_reward_head": ("cpp", "triton"),
    "edit_preference_loss": ("cpp", "triton"),
    "gae": ("cpp", "triton"),
    "token_advantages": ("cpp", "triton"),
    "group_advantages": ("cpp", "triton"),
    "whiten": ("cpp", "triton"),
    "ppo_loss": ("cpp", "triton"),
    "value_loss": ("cpp", "triton"),
    "linear_logprobs": ("cpp", "triton"),
    "linear_ppo_loss": ("cpp", "triton"),
    "linear_kl": ("cpp", "triton"),
    "linear_topk_kl": ("cpp", "triton"),
}

_GPUS = ("cuda", "xpu")  # ROCm's devices are called cuda

_KERNELS_WITHOUT_FP64 = ("token_reward_head",)  # the other kernels add up, or take their coefficients, in fp64
_REFERENCES_WITH_FP64 = ("token_advantages", "group_advantages", "whiten")  # whose moments and statistics are fp64


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

    "auto" takes the fastest available implementation, and warns once when that is the reference. Any other name is a
    demand: an op that has no such implementation, or cannot run it on its inputs' device, raises instead of falling
    back. A function compiled with torch.compile is compiled again for each backend it is called under.

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
    token = _settings.requested_backend.set(backend)
    try:
        yield
    finally:
        _settings.requested_backend.reset(token)


def explain(op: str, device: torch.device) -> Choice:
    """The backend `op` would run on for inputs on `device`, with the reason.

    Raises:
        RuntimeError: the backend demanded with `use_backend` cannot run this op on this device, or no backend can: the
            op needs fp64 and the device has none.
    """
    return _choose(op, device, _settings.backend)


def resolve(op: str, device: torch.device) -> str:
    """Name of the backend `op` runs on for inputs on `device`; see `explain`.

    Warns once a process and reason when "auto" finds nothing faster than the reference.
    """
    return _resolve(op, device, _settings.backend)


def _resolve(op: str, device: torch.device, requested: str) -> str:
    choice = _choose(op, device, requested)
    if choice.backend == "reference" and requested == "auto" and not extension.was_left_out():
        _warn(device.type, choice.reason)
    return choice.backend


# What torch.compiler.assume_constant_result sets, which would import the compiler and Triton with every `import fgrl`.
# The setting is an argument, so that torch.compile sees it and compiles again where it is another one.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _choose(op: str, device: torch.device, requested: str) -> Choice:
    if requested == "reference":
        return _choose_reference(op, device, "requested with use_backend")
    candidates = _IMPLEMENTATIONS[op] if requested == "auto" else (requested,)
    obstacles: dict[str, str] = {}
    for backend in candidates:
        obstacle = _obstacle(op, backend, device)
        if obstacle is None:
            return Choice(backend, "fastest available" if requested == "auto" else "requested with use_backend")
        obstacles[backend] = obstacle
    if requested != "auto":
        raise RuntimeError(
            f"{op} cannot run on the requested backend {requested}: {obstacles[requested]}; use_backend('auto') or "
            "use_backend('reference') would run it"
        )
    # What keeps the implementation for this device from running; that the others are for other devices says nothing.
    own = "cpp" if device.type == "cpu" else "triton"
    reason = obstacles.get(own) or "; ".join(f"{name}: {why}" for name, why in obstacles.items())
    return _choose_reference(op, device, reason)


def _choose_reference(op: str, device: torch.device, reason: str) -> Choice:
    if op in _REFERENCES_WITH_FP64 and lacks_fp64(device):
        raise RuntimeError(
            f"{op} adds up in fp64, and its tensors are on {device}, which has no fp64; they must be on a device that "
            "has it, such as cpu"
        )
    return Choice("reference", reason)


def lacks_fp64(device: torch.device) -> bool:
    """Whether the device has no fp64: Apple's GPUs and some of Intel's."""
    if device.type == "xpu":
        return torch.xpu.is_available() and not torch.xpu.get_device_properties(device).has_fp64
    return device.type == "mps"


@cache
def _warn(device_type: str, reason: str) -> None:
    """Once a process for each reason: `cache` makes the second call do nothing, whatever the warning filters are."""
    warnings.warn(
        f"fgrl runs on the plain PyTorch reference for {device_type} tensors, which is slow: {reason} "
        "(`fgrl doctor` shows more; fgrl.use_backend('reference') asks for it without this warning)",
        RuntimeWarning,
        stacklevel=5,
    )


def has_kernels(device: torch.device) -> bool:
    """Whether Triton kernels can run on this device, unless the reference is asked for."""
    return device.type in _GPUS and _settings.backend != "reference" and _triton_obstacle() is None


def reference(op: str, device: torch.device) -> Callable[..., Any]:
    """`fgrl.reference.<op>`, with autocast off inside `torch.autocast`: an op says itself what it computes in.

    The references of the `linear_*` ops see to that themselves, because autocast says what they multiply. The backward
    pass is not in its hands: PyTorch runs that under the autocast in which `backward` is called, so call it outside.
    """
    from fgrl import reference

    function = getattr(reference, op)
    if not op.startswith("linear_") and is_autocast_enabled(device.type):
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
    if device.type not in (*_GPUS, "cpu", "meta"):
        return f"it runs on tensors on {' or '.join(_GPUS)}, and these are on {device.type}"
    if op not in _KERNELS_WITHOUT_FP64 and lacks_fp64(device):
        return f"its kernels compute in fp64, which {device} does not have"
    return _triton_obstacle()


def _triton_obstacle() -> str | None:
    for module in ("triton", "fgrl.kernels"):
        try:
            import_module(module)
        except ImportError as error:
            return f"{module} cannot be imported ({error})"
    return None
