"""The recursion of `gae` and `token_advantages` as a scan, for many sequences or for few long ones.

With t' the next valid token after t and c = gamma * lam, let ahead_t be what the tokens after t add to its advantage:

    ahead_t = gamma * V_t' + c * A_t'      (gamma * bootstrap + the sequence's reward after the last valid token)
    A_t     = R_t - V_t + ahead_t
    gamma * V_t + c * A_t = c * ahead_t + c * R_t + (gamma - c) * V_t

So a valid token is a map ahead -> decay * ahead + gain, a hole is the identity, and tokens in a row are the composition
of their maps: an associative scan from the end, of which one number passes from block to block.

With many sequences a program works through one of them, block by block from its end. Few would leave the GPU empty; a
program then takes one piece, what a sequence occupies of one block, and two kernels before it find the map of every
piece and what is ahead of it. That reads the inputs twice, but no program ever waits for another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._blocks import store_sums
from fgrl.kernels._kl import kl_value
from fgrl.kernels._launch import FUSION, flags, flat, multiprocessors, on_device
from fgrl.kernels._sequences import ALIGNMENT, among, lanes_of, piece, start_of, store

_TOKENS_PER_THREAD = tl.constexpr(8)
_BYTES_PER_WARP = 1024  # of one tensor in the type of the computation: eight fp32 tokens a thread
_SEQUENCES_PER_MULTIPROCESSOR = 2


class Tokens(NamedTuple):
    """An entry a token; None where there are none."""

    rewards_ptr: Tensor | None
    values_ptr: Tensor
    logprobs_ptr: Tensor | None
    ref_logprobs_ptr: Tensor | None
    mask_ptr: Tensor | None


class Sequences(NamedTuple):
    """An entry a sequence, and one more of `cu_seqlens`; None where there are none."""

    rewards_ptr: Tensor | None
    bootstrap_ptr: Tensor | None
    lams_ptr: Tensor | None
    cu_seqlens_ptr: Tensor | None


class Outputs(NamedTuple):
    """An entry a token; None for a KL that is not to be computed."""

    advantages_ptr: Tensor
    returns_ptr: Tensor
    kl_ptr: Tensor | None


class Shaping(NamedTuple):
    """R_t = scale * clip(r_t, low, high) - kl_coef * KL_t; the estimator by its position in `KL_ESTIMATORS`."""

    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    kl_coef: float = 0.0
    kl_estimator: int = 0


class Split(NamedTuple):
    """How the work is split. The results differ in rounding only."""

    min_block: int = 128
    """Tokens of a block at least, and `max_block` at most: a sequence takes as few blocks as that allows."""
    max_block: int = 1024
    pieces_at_once: int = 256
    """Pieces of a sequence that are linked in one step."""
    in_pieces: bool | None = None
    """Whether a program takes a piece and not a sequence. Default: where sequences are few and long."""


@triton.jit
def _ahead_of_last(sequence, sequences, gamma, DTYPE: tl.constexpr):
    HAS_BOOTSTRAP: tl.constexpr = sequences.bootstrap_ptr is not None
    HAS_REWARDS: tl.constexpr = sequences.rewards_ptr is not None
    ahead = tl.full([], 0.0, tl.float64)
    if HAS_BOOTSTRAP:
        ahead += tl.load(sequences.bootstrap_ptr + sequence).to(tl.float64) * gamma
    if HAS_REWARDS:
        ahead += tl.load(sequences.rewards_ptr + sequence).to(tl.float64)
    return ahead.to(DTYPE)


@triton.jit
def _coefficients(sequence, sequences, gamma, lam, DTYPE: tl.constexpr):
    """c, gamma - c and 1 - gamma, which add up to 1 after rounding too."""
    HAS_LAMS: tl.constexpr = sequences.lams_ptr is not None
    decay = tl.full([], gamma, tl.float64)
    if HAS_LAMS:
        decay *= tl.load(sequences.lams_ptr + sequence).to(tl.float64)
    else:
        decay *= lam
    decay = decay.to(DTYPE)
    gamma = tl.full([], gamma, DTYPE)
    return decay, gamma - decay, 1.0 - gamma


@triton.jit
def _load(ptr, start, inside):
    IS_GIVEN: tl.constexpr = ptr is not None
    if IS_GIVEN:
        return tl.load(ptr + start + tl.arange(0, inside.shape[0]), mask=inside, other=0)
    else:
        return tl.zeros_like(inside)


@triton.jit
def _load_tokens(tokens, start, inside):
    return [_load(ptr, start, inside) for ptr in tokens]


@triton.jit
def _shaped_tokens(
    tokens, start, first, beyond, size, shaping, KL_KIND: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """R_t, V_t and KL_t, 0 where a token is not valid, and which are: [BLOCK] each.

    A load whose bounds are not known to be multiples of anything is split into single elements. So these are widened,
    into other sequences, except where they would leave the tensors.
    """
    HAS_REWARDS: tl.constexpr = tokens.rewards_ptr is not None
    HAS_KL: tl.constexpr = tokens.logprobs_ptr is not None
    HAS_MASK: tl.constexpr = tokens.mask_ptr is not None
    scale, low, high, kl_coef = [tl.full([], number, DTYPE) for number in shaping]
    widened = tl.cdiv(beyond, ALIGNMENT) * ALIGNMENT
    if start + widened <= size:
        block = _load_tokens(tokens, start, among(first // ALIGNMENT * ALIGNMENT, widened, BLOCK))
    else:
        block = _load_tokens(tokens, start, among(first, beyond, BLOCK))
    rewards, values, logprobs, ref_logprobs, mask = block
    valid = among(first, beyond, BLOCK)
    if HAS_MASK:
        valid &= mask != 0
    values = tl.where(valid, values.to(DTYPE), 0.0)
    shaped = tl.zeros_like(values)
    kl = tl.zeros_like(values)
    if HAS_REWARDS:
        rewards = rewards.to(DTYPE)
        rewards = tl.where(rewards < low, low, tl.where(rewards > high, high, rewards))  # a NaN stays one
        shaped = tl.where(valid, scale * rewards, 0.0)
    if HAS_KL:
        kl = kl_value(tl.where(valid, logprobs.to(DTYPE) - ref_logprobs.to(DTYPE), 0.0), KL_KIND)
        shaped -= tl.where(kl_coef != 0, kl_coef * kl, 0.0)  # k3 can overflow, and 0 * inf is NaN
    return shaped, values, kl, valid


@triton.jit
def _after(decay, gain, decay_before, gain_before):
    """The map of some tokens, applied after the map of those that follow them."""
    return decay_before * decay, decay_before * gain + gain_before


@triton.jit
def _maps(rewards, values, valid, origin, coefficients):
    """V_t - origin, and the map of each token together with all that follow it in the block, both sides less `origin`.

    Values may be far larger than the advantages, and so would be their rounding errors, token by token.
    """
    decay, value_weight, one_minus_gamma = coefficients
    values = tl.where(valid, values - origin, 0.0)
    decays = tl.where(valid, decay, 1.0)
    gains = tl.where(valid, decay * rewards + value_weight * values - one_minus_gamma * origin, 0.0)
    decays, gains = tl.associative_scan((decays, gains), 0, _after, reverse=True)
    return values, decays, gains


@triton.jit
def _first_lane(block):
    return tl.sum(tl.where(tl.arange(0, block.shape[0]) == 0, block, 0.0), 0)


@triton.jit(do_not_specialize=["size", "length", "batch"])
def _token_advantages_fwd_kernel(
    outputs,
    partial_ptr,  # [3, programs] fp64
    tokens,
    sequences,
    aheads_ptr,  # [pieces], or None: a program takes a whole sequence
    size,
    length,
    batch,
    gamma: tl.float64,
    lam: tl.float64,
    reward_scale: tl.float64,
    reward_low: tl.float64,
    reward_high: tl.float64,
    kl_coef: tl.float64,
    KL_KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A_t = R_t - V_t + ahead_t,   returns_t = A_t + V_t,   and the moments of the advantages"""
    DTYPE: tl.constexpr = outputs.advantages_ptr.dtype.element_ty
    HAS_KL: tl.constexpr = outputs.kl_ptr is not None
    HAS_MOMENTS: tl.constexpr = partial_ptr is not None
    IN_PIECES: tl.constexpr = aheads_ptr is not None
    if IN_PIECES:
        sequence, start, begin, end = piece(tl.program_id(0), sequences.cu_seqlens_ptr, length, batch, BLOCK)
        ahead = tl.load(aheads_ptr + tl.program_id(0))
    else:
        sequence = tl.program_id(0)
        begin = start_of(sequence, sequences.cu_seqlens_ptr, length)
        end = start_of(sequence + 1, sequences.cu_seqlens_ptr, length)
        start = tl.cdiv(end, ALIGNMENT) * ALIGNMENT - BLOCK
        ahead = _ahead_of_last(sequence, sequences, gamma, DTYPE)
    coefficients = _coefficients(sequence, sequences, gamma, lam, DTYPE)
    shaping = (reward_scale, reward_low, reward_high, kl_coef)

    lanes = tl.arange(0, BLOCK)
    # A thread adds up its own tokens; the sums of threads are added once, after the last block.
    SUMS: tl.constexpr = BLOCK // _TOKENS_PER_THREAD
    count = tl.zeros([SUMS], tl.int32)
    total = tl.zeros([SUMS], tl.float64)
    squares = tl.zeros([SUMS], tl.float64)
    ahead = tl.full([BLOCK], ahead, DTYPE)  # the same in all lanes
    while start + BLOCK > begin:
        first, beyond = lanes_of(start, begin, end, BLOCK)
        rewards, values, kl, valid = _shaped_tokens(tokens, start, first, beyond, size, shaping, KL_KIND, DTYPE, BLOCK)
        if HAS_KL:
            store(outputs.kl_ptr, start, kl, first, beyond)
        centred_values, _, gains = _maps(rewards, values, valid, ahead, coefficients)
        gain_after = tl.gather(gains, tl.minimum(lanes + 1, BLOCK - 1), 0)  # ahead_t - ahead
        gain_after = tl.where(lanes == BLOCK - 1, 0.0, gain_after)
        advantages = tl.where(valid, rewards - centred_values + gain_after, 0.0)
        store(outputs.advantages_ptr, start, advantages, first, beyond)
        store(outputs.returns_ptr, start, advantages + values, first, beyond)
        if HAS_MOMENTS:
            wide = tl.reshape(advantages.to(tl.float64), [SUMS, _TOKENS_PER_THREAD])
            count += tl.sum(tl.reshape(valid.to(tl.int32), [SUMS, _TOKENS_PER_THREAD]), 1)
            total += tl.sum(wide, 1)
            squares += tl.sum(wide * wide, 1)
        if not IN_PIECES:
            ahead += tl.gather(gains, tl.zeros_like(lanes), 0)
        start -= BLOCK
    if HAS_MOMENTS:
        store_sums(partial_ptr, (tl.sum(count, 0), tl.sum(total, 0), tl.sum(squares, 0)))


@triton.jit(do_not_specialize=["size", "length", "batch"])
def _piece_maps_fwd_kernel(
    decays_ptr,  # [pieces]
    gains_ptr,  # [pieces]
    tokens,
    sequences,
    size,
    length,
    batch,
    gamma: tl.float64,
    lam: tl.float64,
    reward_scale: tl.float64,
    reward_low: tl.float64,
    reward_high: tl.float64,
    kl_coef: tl.float64,
    KL_KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The composition of the maps of each piece's tokens."""
    DTYPE: tl.constexpr = decays_ptr.dtype.element_ty
    sequence, start, begin, end = piece(tl.program_id(0), sequences.cu_seqlens_ptr, length, batch, BLOCK)
    coefficients = _coefficients(sequence, sequences, gamma, lam, DTYPE)
    shaping = (reward_scale, reward_low, reward_high, kl_coef)
    first, beyond = lanes_of(start, begin, end, BLOCK)
    rewards, values, _, valid = _shaped_tokens(tokens, start, first, beyond, size, shaping, KL_KIND, DTYPE, BLOCK)
    mean = tl.sum(values, 0) / tl.maximum(tl.sum(valid.to(DTYPE), 0), 1.0)
    _, decays, gains = _maps(rewards, values, valid, mean, coefficients)
    gains += mean - decays * mean
    lanes = tl.arange(0, BLOCK)
    tl.store(decays_ptr + tl.program_id(0) + lanes, decays, mask=lanes == 0)
    tl.store(gains_ptr + tl.program_id(0) + lanes, gains, mask=lanes == 0)


@triton.jit(do_not_specialize=["length"])
def _piece_aheads_fwd_kernel(
    aheads_ptr,  # [pieces]
    decays_ptr,  # [pieces]
    gains_ptr,  # [pieces]
    sequences,
    length,
    gamma: tl.float64,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
):
    """What is ahead of the last token of each piece of a sequence."""
    sequence = tl.program_id(0)
    begin = start_of(sequence, sequences.cu_seqlens_ptr, length)
    end = start_of(sequence + 1, sequences.cu_seqlens_ptr, length)
    first = begin // BLOCK + sequence
    last = (end - 1) // BLOCK + sequence
    ahead = _ahead_of_last(sequence, sequences, gamma, aheads_ptr.dtype.element_ty)
    if end > begin:
        tl.store(aheads_ptr + last, ahead)
    while last > first:
        pieces = last - PIECES + 1 + tl.arange(0, PIECES)
        decays = tl.load(decays_ptr + pieces, mask=pieces > first, other=1.0)
        gains = tl.load(gains_ptr + pieces, mask=pieces > first, other=0.0)
        decays, gains = tl.associative_scan((decays, gains), 0, _after, reverse=True)
        aheads_before = decays * ahead + gains
        tl.store(aheads_ptr + pieces - 1, aheads_before, mask=pieces > first)
        ahead = _first_lane(aheads_before)
        last -= PIECES


def _takes_pieces(batch: int, length: int, split: Split, device: torch.device) -> bool:
    """Whether sequences are so few and, on average, so long that a program for each would not fill the GPU."""
    if split.in_pieces is not None:
        return split.in_pieces
    return length > split.max_block and batch < _SEQUENCES_PER_MULTIPROCESSOR * multiprocessors(device)


def launch(
    outputs: Outputs,
    tokens: Tokens,
    sequences: Sequences,
    gamma: float,
    lam: float,
    shaping: Shaping = Shaping(),  # noqa: B008
    *,
    has_moments: bool = False,
    split: Split = Split(),  # noqa: B008
) -> Tensor | None:
    """Fill `outputs`; with `has_moments` return float64 `[3]`: count, sum and sum of squares of the advantages.

    The moments are added up in two stages in a fixed order: a partial sum a program, then their sum.
    """
    values, cu_seqlens = tokens.values_ptr, sequences.cu_seqlens_ptr
    size, device = values.numel(), values.device
    batch = len(values) if cu_seqlens is None else len(cu_seqlens) - 1
    length = size // max(batch, 1)
    in_pieces = _takes_pieces(batch, length, split, device)
    block = min(max(triton.next_power_of_2(length), split.min_block), split.max_block)
    programs = 0 if size == 0 else size // block + batch if in_pieces else batch
    partial = torch.empty(3, programs, dtype=torch.float64, device=device) if has_moments else None
    if programs:
        tokens = Tokens(*map(flat, tokens[:-1]), flags(tokens.mask_ptr))
        sequences = Sequences(*map(flat, sequences))
        numbers = (size, length, batch, gamma, lam, *shaping[:4])
        warps = max(1, block * outputs.advantages_ptr.element_size() // _BYTES_PER_WARP)
        constants = {"KL_KIND": shaping.kl_estimator, "BLOCK": block, "num_warps": warps, **FUSION}
        aheads = None
        with on_device(values):
            if in_pieces:
                decays, gains, aheads = outputs.advantages_ptr.new_empty(3, programs)
                _piece_maps_fwd_kernel[(programs,)](decays, gains, tokens, sequences, *numbers, **constants)
                _piece_aheads_fwd_kernel[(batch,)](
                    aheads,
                    decays,
                    gains,
                    sequences,
                    length,
                    gamma,
                    BLOCK=block,
                    PIECES=split.pieces_at_once,
                    num_warps=4,
                    **FUSION,
                )
            _token_advantages_fwd_kernel[(programs,)](
                outputs, partial, tokens, sequences, aheads, *numbers, **constants
            )
    return None if partial is None else partial.sum(1)


def aot_batches() -> Iterator[tuple[str, Tensor, Tensor, Tensor, Tensor | None]]:
    """For `aot_cases`: a label, an entry a token, a mask, an entry a sequence, and cu_seqlens.

    Many sequences with the longest and the shortest block, and few long ones, padded and packed.
    """
    for batch, length, is_packed, dtype in (
        (4096, 1000, False, torch.float32),
        (4096, 1000, False, torch.float64),
        (4096, 64, True, torch.bfloat16),
        (8, 131072, False, torch.float32),
        (8, 131072, True, torch.bfloat16),
    ):
        per_token = torch.empty((batch * length,) if is_packed else (batch, length), dtype=dtype, device="meta")
        per_sequence = torch.empty(batch, dtype=dtype, device="meta")
        cu_seqlens = torch.empty(batch + 1, dtype=torch.int32, device="meta") if is_packed else None
        label = f"{batch}x{length}{' packed' if is_packed else ''} {str(dtype).removeprefix('torch.')}"
        yield label, per_token, torch.empty_like(per_token, dtype=torch.bool), per_sequence, cu_seqlens
