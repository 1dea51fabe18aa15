"""Advantages within groups: outcomes, or scores of tokens or segments, compared in the group and laid on the tokens.

Three kernels, none of which waits for another program, adds atomically, or needs the ids sorted:

    items      a program a sequence: count, sum and squared deviations of its scores
    compare    a program some sequences: what an item's baseline and scale are, from all sequences of the same id
    advantages a program a sequence, from its end: x' = (x - centre) * factor and G_t = x'_t + gamma * G_t'
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._advantages import _after, _first_lane
from fgrl.kernels._groups import (
    COUNT,
    LEAST,
    NORM,
    POSITION,
    SQUARES,
    STATISTICS,
    TOTAL,
    VALID,
    _group_compare_fwd_kernel,
)
from fgrl.kernels._launch import FUSION, Case, flags, flat, on_device
from fgrl.kernels._sequences import ALIGNMENT, among, lanes_of, start_of, store
from fgrl.types import compute_dtype

_BYTES_PER_WARP = 1024  # of one tensor in the type of the computation: eight fp32 tokens a thread


class Tokens(NamedTuple):
    """An entry a token; None where there are none."""

    rewards_ptr: Tensor | None
    ids_ptr: Tensor | None
    mask_ptr: Tensor | None


class Blocks(NamedTuple):
    """How the work is split: tokens of a block at least and at most; sequences that a program of `compare` compares,
    and of how many others at a time."""

    min_block: int = 128
    max_block: int = 1024
    rows: int = 16
    columns: int = 64


@triton.jit
def _load(ptr, start, inside):
    IS_GIVEN: tl.constexpr = ptr is not None
    if IS_GIVEN:
        return tl.load(ptr + start + tl.arange(0, inside.shape[0]), mask=inside, other=0)
    else:
        return tl.zeros(inside.shape, tl.int32)


@triton.jit
def _scores(tokens, start, first, beyond, size, next_id, has_next, BLOCK: tl.constexpr):
    """Which tokens are valid, their rewards in fp64, and which end a segment: [BLOCK] each.

    `next_id` is that of the valid token behind the block, if it `has_next`; returned are those for the block before.
    Bounds are widened as in `_advantages.py`, so that a thread loads several tokens at once.
    """
    HAS_MASK: tl.constexpr = tokens.mask_ptr is not None
    HAS_IDS: tl.constexpr = tokens.ids_ptr is not None
    HAS_REWARDS: tl.constexpr = tokens.rewards_ptr is not None
    widened = tl.cdiv(beyond, ALIGNMENT) * ALIGNMENT
    if start + widened <= size:
        inside = among(first // ALIGNMENT * ALIGNMENT, widened, BLOCK)
        rewards, ids, mask = [_load(ptr, start, inside) for ptr in tokens]
    else:
        inside = among(first, beyond, BLOCK)
        rewards, ids, mask = [_load(ptr, start, inside) for ptr in tokens]
    valid = among(first, beyond, BLOCK)
    if HAS_MASK:
        valid &= mask != 0
    scores = tl.zeros([BLOCK], tl.float64)
    if HAS_REWARDS:
        scores = tl.where(valid, rewards.to(tl.float64), 0.0)
    ends = valid
    if HAS_IDS:
        lanes = tl.arange(0, BLOCK)
        ids = ids.to(tl.int64)
        here = tl.where(valid, lanes, BLOCK)
        at_or_after = tl.associative_scan(here, 0, _nearer, reverse=True)
        following = tl.where(lanes == BLOCK - 1, BLOCK, tl.gather(at_or_after, tl.minimum(lanes + 1, BLOCK - 1), 0))
        following_ids = tl.gather(ids, tl.minimum(following, BLOCK - 1), 0)
        is_other = tl.where(following < BLOCK, ids != following_ids, (ids != next_id) | (has_next == 0))
        ends = valid & is_other
        nearest = tl.min(here, 0)
        own_id = tl.sum(tl.where(lanes == nearest, ids, 0), 0)
        next_id = tl.where(nearest < BLOCK, own_id, next_id)
        has_next = tl.where(nearest < BLOCK, 1, has_next)
    return valid, scores, ends, next_id, has_next


@triton.jit
def _nearer(a, b):
    return tl.minimum(a, b)


@triton.jit
def _weighed(scores, start, least, position, norm, min_temperature, IS_MIN_FORM: tl.constexpr):
    """PURE's min-form of the scores: the least alone at temperature 0, else their shares of the softmin."""
    if IS_MIN_FORM:
        if min_temperature == 0:
            at = start + tl.arange(0, scores.shape[0])
            scores = tl.where(at == position, scores, 0.0)
        else:
            scores = scores * (tl.exp((least - scores) / min_temperature) / norm)
    return scores


@triton.jit(do_not_specialize=["size", "length", "batch"])
def _group_items_fwd_kernel(
    statistics_ptr,  # [7, batch] fp64
    tokens,
    cu_seqlens_ptr,
    size,
    length,
    batch,
    min_temperature: tl.float64,
    IS_MIN_FORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count, sum and squared deviations of a sequence's scores, and what their min-form needs."""
    HAS_REWARDS: tl.constexpr = tokens.rewards_ptr is not None
    sequence = tl.program_id(0)
    begin = start_of(sequence, cu_seqlens_ptr, length)
    end = start_of(sequence + 1, cu_seqlens_ptr, length)
    last = tl.cdiv(end, ALIGNMENT) * ALIGNMENT - BLOCK
    statistics_ptr += sequence
    least = tl.full([], float("inf"), tl.float64)
    position = tl.full([], -1, tl.int64)
    norm = tl.full([], 0.0, tl.float64)
    if IS_MIN_FORM:
        start = last
        next_id = tl.full([], 0, tl.int64)
        has_next = tl.full([], 0, tl.int32)
        while start + BLOCK > begin:
            first, beyond = lanes_of(start, begin, end, BLOCK)
            _, scores, ends, next_id, has_next = _scores(tokens, start, first, beyond, size, next_id, has_next, BLOCK)
            keys = tl.where(ends, tl.where(scores != scores, float("-inf"), scores), float("inf"))  # NaN is the least
            key = tl.min(keys, 0)
            at = tl.min(tl.where(ends & (keys == key), tl.arange(0, BLOCK), BLOCK), 0)
            is_least = (at < BLOCK) & (key <= least)
            least = tl.where(is_least, key, least)
            position = tl.where(is_least, start + at, position)
            start -= BLOCK
        if min_temperature != 0:
            start = last
            next_id = tl.full([], 0, tl.int64)
            has_next = tl.full([], 0, tl.int32)
            while start + BLOCK > begin:
                first, beyond = lanes_of(start, begin, end, BLOCK)
                _, scores, ends, next_id, has_next = _scores(
                    tokens, start, first, beyond, size, next_id, has_next, BLOCK
                )
                norm += tl.sum(tl.where(ends, tl.exp((least - scores) / min_temperature), 0.0), 0)
                start -= BLOCK

    any_valid = tl.full([], 0, tl.int32)
    count = tl.full([], 0.0, tl.float64)
    mean = tl.full([], 0.0, tl.float64)
    squares = tl.full([], 0.0, tl.float64)
    start = last
    next_id = tl.full([], 0, tl.int64)
    has_next = tl.full([], 0, tl.int32)
    while start + BLOCK > begin:
        first, beyond = lanes_of(start, begin, end, BLOCK)
        valid, scores, ends, next_id, has_next = _scores(tokens, start, first, beyond, size, next_id, has_next, BLOCK)
        any_valid |= tl.max(valid.to(tl.int32), 0)
        if HAS_REWARDS:
            scores = _weighed(scores, start, least, position, norm, min_temperature, IS_MIN_FORM)
            more = tl.sum(ends.to(tl.int32), 0).to(tl.float64)
            block_mean = tl.sum(tl.where(ends, scores, 0.0), 0) / tl.maximum(more, 1.0)
            deviations = tl.where(ends, scores - block_mean, 0.0)
            together = tl.maximum(count + more, 1.0)
            shift = block_mean - mean
            squares += tl.sum(deviations * deviations, 0) + shift * shift * count * more / together
            mean += shift * more / together
            count += more
        start -= BLOCK
    tl.store(statistics_ptr + VALID * batch, any_valid.to(tl.float64))
    tl.store(statistics_ptr + COUNT * batch, count)
    tl.store(statistics_ptr + TOTAL * batch, mean * count)
    tl.store(statistics_ptr + SQUARES * batch, squares)
    if IS_MIN_FORM:
        tl.store(statistics_ptr + LEAST * batch, least)
        tl.store(statistics_ptr + POSITION * batch, position.to(tl.float64))
        tl.store(statistics_ptr + NORM * batch, norm)


@triton.jit(do_not_specialize=["size", "length", "batch"])
def _group_advantages_fwd_kernel(
    advantages_ptr,
    tokens,
    rewards_ptr,  # [batch]
    statistics_ptr,  # [7, batch] fp64
    comparisons_ptr,  # [4, batch] fp64
    cu_seqlens_ptr,
    size,
    length,
    batch,
    gamma: tl.float64,
    min_temperature: tl.float64,
    IS_MIN_FORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A_t = outcome' + G_t,   G_t = x'_t + gamma * G_t' where a token or a segment ends, and G_t' elsewhere"""
    DTYPE: tl.constexpr = advantages_ptr.dtype.element_ty
    HAS_OUTCOMES: tl.constexpr = rewards_ptr is not None
    HAS_REWARDS: tl.constexpr = tokens.rewards_ptr is not None
    sequence = tl.program_id(0)
    begin = start_of(sequence, cu_seqlens_ptr, length)
    end = start_of(sequence + 1, cu_seqlens_ptr, length)
    start = tl.cdiv(end, ALIGNMENT) * ALIGNMENT - BLOCK
    comparisons_ptr += sequence
    outcome = tl.full([], 0.0, DTYPE)
    if HAS_OUTCOMES:
        reward = tl.load(rewards_ptr + sequence).to(tl.float64)
        outcome = ((reward - tl.load(comparisons_ptr)) * tl.load(comparisons_ptr + batch)).to(DTYPE)
    least = tl.full([], 0.0, tl.float64)
    position = tl.full([], 0, tl.int64)
    norm = tl.full([], 1.0, tl.float64)
    if IS_MIN_FORM:
        least = tl.load(statistics_ptr + LEAST * batch + sequence)
        position = tl.load(statistics_ptr + POSITION * batch + sequence).to(tl.int64)
        norm = tl.load(statistics_ptr + NORM * batch + sequence)
    centre = tl.full([], 0.0, tl.float64)
    factor = tl.full([], 1.0, tl.float64)
    if HAS_REWARDS:
        centre = tl.load(comparisons_ptr + 2 * batch)
        factor = tl.load(comparisons_ptr + 3 * batch)
    discount = tl.full([], gamma, DTYPE)
    following = tl.full([], 0.0, DTYPE)
    next_id = tl.full([], 0, tl.int64)
    has_next = tl.full([], 0, tl.int32)
    while start + BLOCK > begin:
        first, beyond = lanes_of(start, begin, end, BLOCK)
        valid, scores, ends, next_id, has_next = _scores(tokens, start, first, beyond, size, next_id, has_next, BLOCK)
        returns = tl.zeros([BLOCK], DTYPE)
        if HAS_REWARDS:
            scores = _weighed(scores, start, least, position, norm, min_temperature, IS_MIN_FORM)
            gains = tl.where(ends, ((scores - centre) * factor).to(DTYPE), 0.0)
            decays = tl.where(ends, discount, tl.full([], 1.0, DTYPE))
            decays, gains = tl.associative_scan((decays, gains), 0, _after, reverse=True)
            returns = gains + decays * following
            following = _first_lane(returns)
        store(advantages_ptr, start, tl.where(valid, returns + outcome, 0.0), first, beyond)
        start -= BLOCK


def group_advantages(
    rewards: Tensor | None,
    groups: Tensor,
    mask: Tensor | None,
    token_rewards: Tensor | None,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    baseline: int,
    scale: int,
    gamma: float,
    min_temperature: float | None,
    *,
    blocks: Blocks = Blocks(),  # noqa: B008
) -> Tensor:
    """Advantages from outcomes, and from the scores of tokens or segments, compared within groups.

    Reads mask, token rewards and segment ids twice (up to four times in the min-form) and writes the advantages once:
    14 bytes a token in fp32 with a mask of one byte, 6 with outcomes alone. Comparing ids costs the square of the
    number of sequences, some 30 bytes for every 16 pairs, out of the cache.
    """
    like = mask if token_rewards is None else token_rewards
    assert like is not None
    dtype = compute_dtype(rewards, token_rewards)
    advantages = torch.empty(like.shape, dtype=dtype, device=like.device)
    size, batch = like.numel(), len(groups)
    if not size:
        return advantages
    length = size // batch
    tokens = Tokens(flat(token_rewards), flat(segment_ids), flags(mask))
    rewards, groups, cu_seqlens = flat(rewards), flat(groups), flat(cu_seqlens)
    statistics = torch.empty(STATISTICS, batch, dtype=torch.float64, device=like.device)
    comparisons = torch.empty(4, batch, dtype=torch.float64, device=like.device)
    block = min(max(triton.next_power_of_2(length), blocks.min_block), blocks.max_block)
    constants = {
        "IS_MIN_FORM": min_temperature is not None,
        "BLOCK": block,
        "num_warps": max(1, block * advantages.element_size() // _BYTES_PER_WARP),
        **FUSION,
    }
    temperature = 0.0 if min_temperature is None else min_temperature
    with on_device(like):
        _group_items_fwd_kernel[(batch,)](statistics, tokens, cu_seqlens, size, length, batch, temperature, **constants)
        _group_compare_fwd_kernel[(triton.cdiv(batch, blocks.rows),)](
            comparisons,
            statistics,
            rewards,
            groups,
            batch,
            HAS_SCORES=token_rewards is not None,
            BASELINE=baseline,
            SCALE=scale,
            ROWS=blocks.rows,
            COLUMNS=blocks.columns,
            num_warps=4,
            **FUSION,
        )
        _group_advantages_fwd_kernel[(batch,)](
            advantages,
            tokens,
            rewards,
            statistics,
            comparisons,
            cu_seqlens,
            size,
            length,
            batch,
            gamma,
            temperature,
            **constants,
        )
    return advantages


def aot_cases() -> Iterator[Case]:
    """Outcomes alone; everything with segments in the min-form, in fp32, fp64 and bf16 packed; token rewards alone."""

    def case(label: str, dtype: torch.dtype, shape: tuple[int, ...], *given: str) -> Case:
        batch = 4096
        tokens = torch.empty(shape, dtype=dtype, device="meta")
        integers = torch.empty(shape, dtype=torch.int64, device="meta")
        arguments = {
            "rewards": torch.empty(batch, dtype=dtype, device="meta") if "rewards" in given else None,
            "groups": torch.empty(batch, dtype=torch.int64, device="meta"),
            "mask": torch.empty(shape, dtype=torch.bool, device="meta"),
            "token_rewards": tokens if "token_rewards" in given else None,
            "segment_ids": integers if "segment_ids" in given else None,
            "cu_seqlens": torch.empty(batch + 1, dtype=torch.int32, device="meta") if len(shape) == 1 else None,
        }
        numbers = (1, 1 if "batch" in given else 0, 0.9, 0.1 if "min" in given else None)
        return Case(f"{label} {str(dtype).removeprefix('torch.')}", group_advantages, (*arguments.values(), *numbers))

    yield case("outcomes", torch.float32, (4096, 1000), "rewards")
    yield case("tokens", torch.float32, (4096, 1000), "token_rewards", "batch")
    for dtype, shape in (
        (torch.float32, (4096, 1000)),
        (torch.float64, (4096, 1000)),
        (torch.bfloat16, (4096 * 64,)),
    ):
        yield case("all", dtype, shape, "rewards", "token_rewards", "segment_ids", "min")
