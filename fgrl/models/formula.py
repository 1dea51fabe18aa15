"""What a causal LM does to the output of its head: learned from the model, and compared with its own logits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fgrl.models.output_head import output_head
from fgrl.models.probe import head_input, input_device, ordinary_ids, rounding, takes, undisturbed


class LogitFormula(NamedTuple):
    """logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap), or why they are not (`problem`)."""

    scale: float
    softcap: float | None
    problem: str | None


def learn_formula(model: Any, inner: Any, head: nn.Module) -> LogitFormula:
    """Ask `model` how its logits follow from what its head reads.

    In one run the head's output is replaced by numbers of every magnitude, so that scale and soft-cap show whatever the
    weights are; in a second one the whole formula must give the model's own logits.

    Args:
        model: the causal LM, with PEFT around it where it has adapters.
        inner: the transformers model in it.
        head: its output embeddings.
    """
    ids = torch.tensor(ordinary_ids(inner, 6), device=input_device(inner)).view(2, 3)
    inputs: dict[str, Any] = {"input_ids": ids}
    if takes(inner, "use_cache"):
        inputs["use_cache"] = False
    with undisturbed(model):
        weight, bias = output_head(head)
        try:
            scale, softcap, trained = _behind_head(model, inner, head, inputs)
            if trained:
                raise _Mismatch("parameters behind its head change them")
            with head_input(head) as seen:
                own = model(**inputs).logits
            if len(seen) != 1 or seen[0].shape != (*ids.shape, weight.shape[1]):
                raise _Mismatch(f"its head is not given one hidden state [{weight.shape[1]}] for each token")
            predicted = _apply(nn.functional.linear(seen[0], weight, bias), scale, softcap)
            if not _close(own, predicted, 8 * rounding(own, weight, seen[0])):
                raise _Mismatch("they differ from it")
        except _Mismatch as mismatch:
            problem = (
                f"model is a {type(inner).__name__}, whose logits are not {_FORMULA}: {mismatch}; it must be one "
                'whose logits are, or its own logits must be taken (fallback="logits")'
            )
            return LogitFormula(1.0, None, problem)
    return LogitFormula(scale, softcap, None)


_FORMULA = "softcap(scale * (hidden @ weight.T + bias))"


class _Mismatch(Exception):
    """A model that does not follow the formula, and how that shows."""


def _behind_head(model: Any, inner: Any, head: nn.Module, inputs: dict[str, Any]) -> tuple[float, float | None, bool]:
    """Scale and soft-cap behind the head, and whether parameters take part in them."""
    given: list[Tensor] = []

    def replace(_: nn.Module, __: Any, raw: Tensor) -> Tensor:
        given.append(_magnitudes(raw))
        torch.set_grad_enabled(True)  # for what follows the head: a parameter there would show in the logits
        return given[-1]

    handle = head.register_forward_hook(replace)
    try:
        own = model(**inputs).logits
    finally:
        handle.remove()
        torch.set_grad_enabled(False)
    if len(given) != 1 or given[0].shape != own.shape or own.shape[:2] != inputs["input_ids"].shape:
        raise _Mismatch("its head is not what computes one row of logits for each token")
    precision = rounding(own, given[0])
    x, y = given[0].double().flatten(), own.detach().double().flatten()
    if not y.isfinite().all():
        raise _Mismatch("some are masked or infinite")
    scale, softcap = _fit(x, y)
    settings = _numbers(inner.config)
    scale = _snap(scale, [1.0, *settings, *(1 / number for number in settings)], precision)
    softcap = None if softcap is None else _snap(softcap, settings, precision)
    if not bool((_apply(x, scale, softcap) - y).abs().le(8 * precision * y.abs()).all()):
        raise _Mismatch("what it does behind its head is neither a scale nor a soft-cap")
    return scale, softcap, own.requires_grad


def _magnitudes(raw: Tensor) -> Tensor:
    """Numbers of both signs and every magnitude in the shape of `raw`, exact in its dtype and far from its largest."""
    largest = 13 if raw.dtype == torch.float16 else 25
    powers = torch.arange(-6, largest, device=raw.device).exp2().to(raw.dtype)
    values = torch.cat([powers, -powers, powers * 1.5, -powers * 1.5])
    return values[torch.arange(raw.numel(), device=raw.device) % len(values)].view(raw.shape)


def _fit(x: Tensor, y: Tensor) -> tuple[float, float | None]:
    """Scale and soft-cap that turn `x` into `y`, float64."""
    top = x.abs() == x.abs().max()
    half = x.abs() == x.abs().max() / 2
    cap = float(y[top].abs().max())
    if cap == 0 or float(y[half].abs().max()) < 0.75 * cap:  # still growing: no soft-cap
        return float((x * y).sum() / (x * x).sum()), None
    bent = y.abs() < 0.7 * cap
    if not bool(bent.any()):
        return math.inf, cap
    return float((cap * torch.atanh(y[bent] / cap) / x[bent]).median()), cap


def _numbers(config: Any) -> list[float]:
    """Every number of a configuration that may be a scale or a soft-cap."""
    values = [value for part in (config, config.get_text_config()) for value in vars(part).values()]
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value) and value]


def _snap(value: float, candidates: list[float], precision: float) -> float:
    """The candidate that `value` is, up to rounding; or `value`."""
    nearest = min(candidates, key=lambda candidate: abs(candidate - value), default=value)
    return nearest if abs(nearest - value) <= 2 * precision * abs(value) else value


def _apply(raw: Tensor, scale: float, softcap: float | None) -> Tensor:
    scaled = raw * scale
    return scaled if softcap is None else softcap * torch.tanh(scaled / softcap)


def _close(own: Tensor, predicted: Tensor, tolerance: float) -> bool:
    difference = (own.double() - predicted.double()).abs().max()
    return bool(difference <= tolerance * predicted.double().abs().max())
