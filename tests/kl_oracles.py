"""The oracles of `linear_kl` and `linear_topk_kl`: scalar loops, written from the design as those of `oracles.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from oracles import Array


def _log_softmax(
    hidden: Array, weight: Array, bias: Array = None, temperature: float = 1.0, softcap: float | None = None
) -> list[float]:
    """Log-probabilities of all tokens after one hidden state `[D]`."""
    logits = []
    for v in range(weight.shape[0]):
        logit = math.fsum(float(h) * float(w) for h, w in zip(hidden, weight[v], strict=True))
        logit += 0.0 if bias is None else float(bias[v])
        if softcap is not None:
            logit = softcap * math.tanh(logit / softcap)
        logits.append(logit / temperature)
    top = max(logits)
    log_normalizer = top + math.log(math.fsum(math.exp(x - top) for x in logits))
    return [x - log_normalizer for x in logits]


def divergence(student: Sequence[float], teacher: Sequence[float], kind: str, beta: float) -> float:
    """Between two distributions given as log-probabilities of the same classes; -inf is a class that cannot be."""

    def relative(first: Sequence[float], second: Sequence[float]) -> float:
        return math.fsum(math.exp(a) * (a - b) for a, b in zip(first, second, strict=True) if a > -math.inf)

    if kind == "reverse":
        return relative(student, teacher)
    if kind == "forward":
        return relative(teacher, student)
    sums = [beta * math.exp(t) + (1 - beta) * math.exp(s) for s, t in zip(student, teacher, strict=True)]
    mixture = [math.log(x) if x > 0 else -math.inf for x in sums]
    return beta * relative(teacher, mixture) + (1 - beta) * relative(student, mixture)


def linear_kl(
    hidden: Array,
    weight: Array,
    teacher_hidden: Array,
    teacher_weight: Array,
    valid: Sequence[bool],
    kind: str,
    beta: float,
    bias: Array = None,
    teacher_bias: Array = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
) -> Array:
    """The divergence over the whole vocabulary after each hidden state, `[N]`."""
    result = np.zeros(hidden.shape[0])
    for n in range(hidden.shape[0]):
        if valid[n]:
            student = _log_softmax(hidden[n], weight, bias, temperature, softcap)
            teacher = _log_softmax(teacher_hidden[n], teacher_weight, teacher_bias, temperature, teacher_softcap)
            result[n] = divergence(student, teacher, kind, beta)
    return result


def linear_topk_kl(
    hidden: Array,
    weight: Array,
    ids: Array,
    logprobs: Array,
    valid: Sequence[bool],
    kind: str,
    beta: float,
    tail: str,
    bias: Array = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Array:
    """The divergence from a teacher that lists `ids [N, K]` with `logprobs [N, K]`; -inf lists nothing."""
    result = np.zeros(hidden.shape[0])
    for n in range(hidden.shape[0]):
        if not valid[n]:
            continue
        everything = _log_softmax(hidden[n], weight, bias, temperature, softcap)
        listed = [(int(v), float(lp)) for v, lp in zip(ids[n], logprobs[n], strict=True) if lp > -math.inf]
        student, teacher = [everything[v] for v, _ in listed], [lp for _, lp in listed]
        if tail == "renormalize":
            for side in (student, teacher):
                total = math.fsum(math.exp(x) for x in side)
                side[:] = [x - math.log(total) for x in side]
        others = [x for v, x in enumerate(everything) if v not in {v for v, _ in listed}]
        if tail == "bucket" and others:
            top = max(others)
            student.append(top + math.log(math.fsum(math.exp(x - top) for x in others)))
            teacher.append(math.log(max(1 - math.fsum(math.exp(x) for x in teacher), 1e-6)))
        result[n] = divergence(student, teacher, kind, beta)
    return result
