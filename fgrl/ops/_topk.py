"""The steps of `linear_topk_kl` between the products: the tokens a teacher lists, and all others together.

Listed tokens are taken out of a row of logits, which leaves the statistics of the others: their sum is exact also where
it is much smaller than that of the listed ones. What is listed is `[R, K]`, small beside the logits `[R, V]`.
"""

from __future__ import annotations

import math
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from fgrl.ops._linear import Chunk, LinearRows
from fgrl.types import TAIL_FLOOR, Tail

TAILS: tuple[str, ...] = get_args(Tail)
_BLOCKS = 8  # parts of a chunk that the derivative of a soft-cap is kept for at a time


class TopKDivergence(NamedTuple):
    """`divergence [R]`, and its gradient by the listed z `[R, K]` and by the log of the sum of all other e^z `[R]`."""

    divergence: Tensor
    by_listed: Tensor
    by_rest: Tensor


def topk_divergence(
    student: Tensor, rest: Tensor, teacher: Tensor, tail: str, divergence: str, beta: float
) -> TopKDivergence:
    """The divergence over listed classes, and one more for all others where `tail` is "bucket".

    Args:
        student: `[R, K]`, z of the listed tokens, -inf where none is listed.
        rest: `[R]`, log of the sum of e^z over all other tokens; of no effect with "renormalize".
        teacher: `[R, K]`, log-probabilities, -inf where none is listed.
        tail: one of `TAILS`.
        divergence: one of `DIVERGENCES`.
        beta: weight of the teacher in "jsd".
    """
    classes = student if tail == "renormalize" else torch.cat([student, rest[:, None]], 1)
    largest = torch.nan_to_num(classes.amax(1, keepdim=True), neginf=0.0)  # 0 where there is no class
    total = (classes - largest).exp().sum(1, keepdim=True)
    p = classes - largest - total.clamp(min=torch.finfo(total.dtype).tiny).log()  # log-probabilities from here on
    q = teacher
    if tail == "renormalize":
        mass = teacher.logsumexp(1, keepdim=True)
        q = teacher - torch.where(torch.isneginf(mass), 0, mass)
    elif tail == "bucket":
        mass = -torch.expm1(teacher.logsumexp(1).clamp(max=0))
        others = torch.where(torch.isneginf(rest), -math.inf, mass.clamp(min=TAIL_FLOOR).log())
        q = torch.cat([teacher, others[:, None]], 1)
    else:
        q = torch.cat([teacher, torch.full_like(rest, -math.inf)[:, None]], 1)
    counted = p if tail != "ignore" else torch.cat([p[:, :-1], torch.full_like(rest, -math.inf)[:, None]], 1)
    value, grad = _terms(counted, q, divergence, beta, is_distribution=tail != "ignore")
    # `grad` is by log-probabilities, all of which depend on each z through the normalizer.
    by_z = grad - p.exp() * grad.sum(1, keepdim=True)
    count = student.shape[1]
    by_rest = torch.zeros_like(rest) if tail == "renormalize" else by_z[:, count]
    return TopKDivergence(value.sum(1), by_z[:, :count], by_rest)


def _terms(p: Tensor, q: Tensor, divergence: str, beta: float, *, is_distribution: bool) -> tuple[Tensor, Tensor]:
    """What each class adds to the divergence, and its derivative by log p, for log-probabilities p and q.

    Up to a multiple of p, which the normalizer takes away again, where the classes are a whole distribution.
    """
    weights = p.exp()
    if divergence == "forward":
        return _relative(q, p), -q.exp()
    if divergence == "reverse":
        terms = _relative(p, q)
        return terms, terms if is_distribution else terms + weights
    mixture = (beta * q.exp() + (1 - beta) * weights).clamp(min=torch.finfo(p.dtype).tiny).log()
    of_student = (1 - beta) * _relative(p, mixture)
    return beta * _relative(q, mixture) + of_student, of_student


def _relative(first: Tensor, second: Tensor) -> Tensor:
    """`e^first (first - second)`, 0 where the first is impossible."""
    weight = first.exp()
    return torch.where(weight > 0, weight * (first - second), 0)


class ListedTokens:
    """The listed tokens of a chunk, which are taken out of its logits.

    Args:
        rows: the rows of the call.
        chunk: some of them. A soft-cap is applied to its logits in place.
        ids: int64 `[R, K]`, of the whole vocabulary; anything where the teacher has -inf.
        teacher: `[R, K]`.
        shard: of `vocabulary_shard`.
    """

    def __init__(self, rows: LinearRows, chunk: Chunk, ids: Tensor, teacher: Tensor, shard: Tensor | None) -> None:
        logits, bias, self._softcap = chunk.logits, rows.bias, rows.softcap
        if self._softcap is not None:
            if bias is not None:
                logits += bias
            logits.div_(self._softcap).tanh_().mul_(self._softcap)
            bias = None
        self._logits, self._bias, self._targets, self._temperature = logits, bias, chunk.targets, rows.temperature
        is_given = ~torch.isneginf(teacher)
        ids = ids if shard is None else ids - shard[0]
        self._is_here = is_given & (ids >= 0) & (ids < logits.shape[1])
        # Where a token is not here its column is that of one that is, so that both write the same.
        self._first = self._is_here.int().argmax(1, keepdim=True)
        first = ids.gather(1, self._first)
        self._columns = torch.where(self._is_here, ids, first).clamp(0, logits.shape[1] - 1)
        raw = logits.gather(1, self._columns)
        self._cap_grad = None if self._softcap is None else 1 - (raw / self._softcap).square()
        z = raw if bias is None else raw + bias.to(raw.dtype)[self._columns]
        z = torch.where(self._is_here, z / self._temperature, 0)
        rows.reduce(z, "SUM")
        self.student = torch.where(is_given, z, -math.inf)
        """z of the listed tokens `[R, K]`, -inf where none is listed."""
        self._write(logits, torch.full_like(raw, -math.inf))
        statistics = rows.statistics_of(logits, bias, chunk.targets, None)[1]
        self._max, self._total = statistics.max, statistics.total
        self.rest = torch.where(self._total > 0, self._max + self._total.log(), -math.inf)
        """Log of the sum of e^z over all other tokens `[R]`."""

    def write_gradient(self, out: Tensor, by_listed: Tensor, by_rest: Tensor) -> None:
        """The gradient by the logits `[R, V]` into `out`, which may take the place of the logits.

        Args:
            out: in the dtype of operands.
            by_listed: gradient by the listed logits before the soft-cap, `[R, K]`.
            by_rest: gradient by `rest`, `[R]`.
        """
        constant = torch.where(self._total > 0, by_rest / self._total, 0)
        zero = torch.zeros_like(constant)
        grads = torch.stack([self._max, constant, zero, zero])  # [4, R]
        blocks = 1 if self._softcap is None else _BLOCKS
        size = max(1, -(-out.shape[0] // blocks))
        for start in range(0, out.shape[0], size):
            block = slice(start, start + size)
            cap_grad = None if self._softcap is None else 1 - (self._logits[block] / self._softcap).square()
            torch.ops.fgrl.logit_gradient(
                self._logits[block],
                self._bias,
                self._targets[block],
                grads[:, block].contiguous(),
                self._temperature,
                None,
                out[block],
            )
            if cap_grad is not None:
                out[block] *= cap_grad
        self._write(out, by_listed if self._cap_grad is None else by_listed * self._cap_grad)

    def _write(self, to: Tensor, values: Tensor) -> None:
        """`values [R, K]` into the columns of the listed tokens that are here."""
        values = torch.where(self._is_here, values, values.gather(1, self._first)).to(to.dtype)
        is_any_here = self._is_here.any(1, keepdim=True)
        to.scatter_(1, self._columns, torch.where(is_any_here, values, to.gather(1, self._columns)))
