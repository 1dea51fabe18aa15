"""Asking a model about itself in a few tokens, without leaving a trace: what `batches` and `head` stand on."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fgrl.models.fit import vocabulary_rows

FactsT = TypeVar("FactsT")


class Memory:
    """What was learned about each model object, for as long as the model lives and its configuration stays the same."""

    def __init__(self) -> None:
        self._facts: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Any]] = weakref.WeakKeyDictionary()

    def recall(self, model: nn.Module, parts: Sequence[nn.Module], learn: Callable[[], FactsT]) -> FactsT:
        """The facts about `model`; learned again when one of its `parts` was replaced or its configuration changed."""
        known, facts = self._facts.get(model, (None, None))
        key = (tuple(map(id, parts)), _settings(model.config))  # type: ignore[arg-type]
        if known != key:
            facts = learn()
            self._facts[model] = (key, facts)
        return facts  # type: ignore[no-any-return]


def _settings(config: Any) -> tuple[Any, ...]:
    """Every plain value of a configuration and of the one for text in it."""
    return tuple(
        value
        for part in (config, config.get_text_config())
        for value in vars(part).values()
        if value is None or isinstance(value, int | float | str)
    )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards modes, random state and attention type are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    # BigBird switches to full attention, for good, when it meets a short sequence.
    attention = [(module, module.attention_type) for module in model.modules() if hasattr(module, "set_attention_type")]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type not in ("cpu", "meta")}
    kind = next(iter(devices)).type if devices else "cuda"
    try:
        with torch.no_grad(), torch.random.fork_rng([device.index or 0 for device in devices], device_type=kind):
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, value in attention:
            if module.attention_type != value:
                module.set_attention_type(value)  # type: ignore[operator]


def ordinary_ids(model: Any, count: int) -> list[int]:
    """Different token ids that `model.config` gives no role: no padding, no image, no end of sequence."""
    special = {0, 1, 2}
    for config in (model.config, model.config.get_text_config()):
        for name, value in vars(config).items():
            if "token" in name:
                special |= {item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)}
    rows = vocabulary_rows(model) or 256  # CANINE has no embedding table and takes every id
    usable = (*range(rows // 3, min(rows, rows // 3 + 1000)), *range(3, rows // 3))
    chosen = [token for token in usable if token not in special][:count]
    if len(chosen) < count:
        raise ValueError(f"{type(model).__name__} has {rows} vocabulary rows; it must have at least {count + 3}")
    return chosen


def input_device(model: Any) -> torch.device:
    """Where the token ids go."""
    try:
        parameters = model.get_input_embeddings().parameters()
    except NotImplementedError:
        parameters = model.parameters()
    device: torch.device = next(iter(parameters)).device
    return device


def takes(model: nn.Module, argument: str, *, or_any: bool = False) -> bool:
    """Whether `model.forward` names `argument`; with `or_any`, or takes arguments of any name."""
    parameters = inspect.signature(model.forward).parameters
    any_name = or_any and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return argument in parameters or any_name


@contextmanager
def head_input(head: nn.Module, *, keep: int | None = None) -> Iterator[list[Tensor]]:
    """What `head` reads while the model runs: the list gets one tensor a call.

    Args:
        head: a linear layer, or what PEFT has made of it.
        keep: the head itself then sees the last `keep` tokens only.
    """
    seen: list[Tensor] = []

    def read(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = arguments
        seen.append(hidden)
        return (hidden if keep is None else hidden[..., -keep:, :], *rest)

    handle = head.register_forward_pre_hook(read)
    try:
        yield seen
    finally:
        handle.remove()


def rounding(*tensors: Tensor) -> float:
    """Relative error of one rounding in the least precise of the dtypes that made `tensors`."""
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return max(torch.finfo(dtype).eps for dtype in dtypes)
