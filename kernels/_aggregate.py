"""How the losses of tokens become one number (`fgrl.reference.ppo_loss.aggregate_tokens`), deterministically.

A loss kernel works on flat blocks of tokens, whatever the sequences, and each of its programs writes partial sums;
`_finish_fwd_kernel` adds them in order. Only in seq-mean-token-mean does the weight of a token depend on its sequence:
`_count_tokens_fwd_kernel` first counts the valid tokens of each, in integers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._blocks import load_block
from fgrl.kernels._launch import FUSION, flat, programs_for
from fgrl.kernels._sequences import sequence_at, start_of

BLOCK = 1024  # tokens, unless a launcher is asked for another
WARPS = 8
TOKEN_MEAN, TOKEN_SUM, SEQ_MEAN_TOKEN_SUM, SEQ_MEAN_TOKEN_MEAN = range(4)  # as in `fgrl.ops._aggregation`
_PROGRAMS_PER_MULTIPROCESSOR = 8


def programs(tokens: int, block: int, device: torch.device, max_programs: int | None) -> int:
    """How many programs a loss kernel runs, each over many blocks, so that there are few partial sums."""
    return programs_for(triton.cdiv(tokens, block), device, _PROGRAMS_PER_MULTIPROCESSOR, max_programs)


class Weights(NamedTuple):
    """What `token_weights` needs, or nothing where sequences have no weights."""

    counts_ptr: Tensor | None = None
    """int32 `[batch]`: valid tokens of each sequence."""
    first_ptr: Tensor | None = None
    """int32 `[blocks]`: the first sequence of each block."""
    cu_seqlens_ptr: Tensor | None = None


class Aggregation:
    """One call's aggregation: the tokens of each sequence are counted here, when they matter.

    Reads the mask once for that, otherwise nothing.
    """

    def __init__(
        self,
        kind: int,
        like: Tensor,
        mask: Tensor | None,
        normalizer: Tensor | None,
        cu_seqlens: Tensor | None,
        denominator: float,
        block: int,
        *,
        finds_sequences: bool = False,
    ) -> None:
        self._kind, self._normalizer, self._denominator = kind, normalizer, denominator
        self._block = block
        divides_by_count = normalizer is None and denominator == 0
        is_counted = kind == SEQ_MEAN_TOKEN_MEAN or (kind == SEQ_MEAN_TOKEN_SUM and divides_by_count)
        counted = Weights()
        if is_counted or finds_sequences:
            counted = _count_tokens(like, mask, flat(cu_seqlens), block)
        self.sequences = counted
        """Where the sequences are, if they were counted or asked for."""
        self._counts = counted.counts_ptr if is_counted else None
        self.weights = counted if kind == SEQ_MEAN_TOKEN_MEAN else Weights()

    def finish(
        self,
        partial: Tensor,
        dtype: torch.dtype,
        coefficients: tuple[float, ...],
        has_max: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, statistics and scale from `partial [statistics, programs]`, in fp64.

        The rows are those of the statistics: a sum for each of `coefficients`, which are aggregated as the loss is and
        make it up; sums that are averaged over the valid tokens; the maximum of something, if `has_max`; and the
        number of valid tokens. A coefficient of 0 leaves a part out of the loss, whatever it is.
        """
        statistics, columns = partial.shape
        loss, scale = (torch.empty((), dtype=dtype, device=partial.device) for _ in range(2))
        stats = torch.empty(statistics, dtype=dtype, device=partial.device)
        _finish_fwd_kernel[(1,)](
            loss,
            stats,
            scale,
            partial,
            self._counts,
            self._normalizer,
            columns,
            0 if self._counts is None else self._counts.shape[0],
            self._denominator,
            *(*coefficients, 0.0, 0.0)[:3],
            IS_TOKEN_MEAN=self._kind == TOKEN_MEAN,
            STATISTICS=statistics,
            PARTS=len(coefficients),
            HAS_MAX=has_max,
            HAS_DENOMINATOR=self._denominator > 0,
            ROWS=triton.next_power_of_2(statistics),
            BLOCK=min(self._block, 256),
            num_warps=4,
            **FUSION,
        )
        return loss, stats, scale


def _count_tokens(like: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, block: int) -> Weights:
    batch = like.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    blocks = triton.cdiv(like.numel(), block)
    counts = torch.zeros(batch, dtype=torch.int32, device=like.device)
    first = torch.empty(blocks, dtype=torch.int32, device=like.device)
    if blocks:
        _count_tokens_fwd_kernel[(blocks,)](
            counts, first, mask, cu_seqlens, like.numel(), like.shape[-1], batch, BLOCK=block, num_warps=4, **FUSION
        )
    return Weights(counts, first, cu_seqlens)


@triton.jit
def token_weights(weights, start, size, length, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """1 / (valid tokens of the token's sequence) for the block at `start`; 1 when sequences have no weights."""
    HAS_WEIGHTS: tl.constexpr = weights.counts_ptr is not None
    weight = tl.full([BLOCK], 1.0, DTYPE)
    if HAS_WEIGHTS:
        positions = start + tl.arange(0, BLOCK)
        sequence = tl.load(weights.first_ptr + start // BLOCK)
        weight /= tl.maximum(tl.load(weights.counts_ptr + sequence), 1).to(DTYPE)
        boundary = start_of(sequence + 1, weights.cu_seqlens_ptr, length)
        while boundary < tl.minimum(start + BLOCK, size):
            sequence += 1
            next_weight = 1.0 / tl.maximum(tl.load(weights.counts_ptr + sequence), 1).to(DTYPE)
            weight = tl.where(positions >= boundary, next_weight, weight)
            boundary = start_of(sequence + 1, weights.cu_seqlens_ptr, length)
    return weight


@triton.jit
def larger(one, other):
    """The larger of two, NaN if one is."""
    return tl.where((one > other) | (one != one), one, other)


@triton.jit(do_not_specialize=["size", "length", "batch"])
def _count_tokens_fwd_kernel(
    counts_ptr,  # [batch] int32, zeros
    first_ptr,  # [blocks] int32
    mask_ptr,
    cu_seqlens_ptr,
    size,
    length,
    batch,
    BLOCK: tl.constexpr,
):
    """Adds the valid tokens of one block to the counts of its sequences, and says which is the first of them."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    valid, _ = load_block((), mask_ptr, start, size, tl.int1, BLOCK)
    sequence = sequence_at(start, cu_seqlens_ptr, length, batch)
    tl.store(first_ptr + tl.program_id(0), sequence)
    end = tl.minimum(start + BLOCK, size)
    begin = start
    while begin < end:
        stop = tl.minimum(start_of(sequence + 1, cu_seqlens_ptr, length), end)
        is_here = valid & (lanes >= begin - start) & (lanes < stop - start)
        tl.atomic_add(counts_ptr + sequence, tl.sum(is_here.to(tl.int32), 0))
        begin = stop
        sequence += 1


@triton.jit(do_not_specialize=["columns", "batch"])
def _finish_fwd_kernel(
    loss_ptr,
    stats_ptr,  # [STATISTICS]
    scale_ptr,
    partial_ptr,  # [STATISTICS, columns] fp64
    counts_ptr,  # [batch] int32
    normalizer_ptr,
    columns,
    batch,
    denominator: tl.float64,
    first: tl.float64,
    second: tl.float64,
    third: tl.float64,
    IS_TOKEN_MEAN: tl.constexpr,
    STATISTICS: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_MAX: tl.constexpr,
    HAS_DENOMINATOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """See `Aggregation.finish`; one program."""
    HAS_NORMALIZER: tl.constexpr = normalizer_ptr is not None
    HAS_COUNTS: tl.constexpr = counts_ptr is not None
    rows = tl.arange(0, ROWS)
    is_max = HAS_MAX & (rows == STATISTICS - 2)
    partial = tl.zeros([ROWS, BLOCK], tl.float64)
    for start in range(0, columns, BLOCK):
        lanes = start + tl.arange(0, BLOCK)
        inside = (rows[:, None] < STATISTICS) & (lanes < columns)[None, :]
        values = tl.load(partial_ptr + rows[:, None] * columns + lanes[None, :], mask=inside, other=0)
        partial = tl.where(is_max[:, None], larger(values, partial), partial + values)
    totals = tl.where(is_max, tl.reduce(partial, 1, larger), tl.sum(partial, 1))  # [ROWS]
    count = tl.maximum(tl.sum(tl.where(rows == STATISTICS - 1, totals, 0.0), 0), 1.0)

    if HAS_NORMALIZER:
        divisor = tl.load(normalizer_ptr).to(tl.float64)
        divisor = tl.where(divisor == 0, 1.0, divisor)
    elif HAS_DENOMINATOR:
        divisor = tl.full([], denominator, tl.float64)
    elif HAS_COUNTS:
        occupied = tl.zeros([BLOCK], tl.int32)
        for start in range(0, batch, BLOCK):
            lanes = start + tl.arange(0, BLOCK)
            occupied += (tl.load(counts_ptr + lanes, mask=lanes < batch, other=0) > 0).to(tl.int32)
        divisor = tl.maximum(tl.sum(occupied, 0), 1).to(tl.float64)
    elif IS_TOKEN_MEAN:
        divisor = count
    else:
        divisor = tl.full([], 1.0, tl.float64)

    is_part = rows < PARTS
    is_mean = rows < STATISTICS - 1 - HAS_MAX
    stats = tl.where(is_part, totals / divisor, tl.where(is_mean, totals / count, totals))
    first = tl.full([], first, tl.float64)
    second = tl.full([], second, tl.float64)
    third = tl.full([], third, tl.float64)
    coefficients = tl.where(rows == 0, first, tl.where(rows == 1, second, third))  # [ROWS]
    loss = tl.sum(tl.where(is_part & (coefficients != 0), coefficients * stats, 0.0), 0)
    tl.store(stats_ptr + rows, stats, mask=rows < STATISTICS)
    tl.store(loss_ptr, loss)
    tl.store(scale_ptr, 1.0 / divisor)
