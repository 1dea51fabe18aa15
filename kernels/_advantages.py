"""The recursion of `gae` and `token_advantages` as a scan, for many sequences or for few long ones.

With t' the next valid token after t and c = gamma * lam, let ahead_t be what the tokens after t add to its advantage:

    ahead_t = gamma * V_t' + c * A_t'      (gamma * bootstrap + the sequence's reward after the last valid token)
    A_t     = R_t - V_t + ahead_t
    gamma * V_t + c * A_t = c * ahead_t + c * R_t + (gamma - c) * V_t

So a valid token is a map ahead -> decay * ahead + gain, a hole is the identity, and tokens in a row are the composition
of their maps: an associative scan from the end, of which one number passes from block to block.

With many sequences a program works through one of them, block by block from its end. Few would leave the GPU empty; a
program then takes one piece, what a sequence occupies of one block, and two kernels before it find the map of every
piece and what is ahead of it. So the inputs are read twice there, and nobody waits for anybody.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.extension import interprets_kernels
from fgrl.kernels._kl import kl_value
from fgrl.kernels._launch import multiprocessors, on_device
from fgrl.kernels.whiten import store_partial_moments

_SHORTEST_BLOCK, _LONGEST_BLOCK = (16, 32) if interprets_kernels() else (128, 1024)
_TOKENS_PER_WARP = 256
_SEQUENCES_PER_MULTIPROCESSOR = 2
_ALIGNMENT = tl.constexpr(16)  # of the first token of a block, so that a thread loads several tokens at once


class Tokens(NamedTuple):
    """An entry a token, flat and contiguous; None where there are none."""

    rewards_ptr: Tensor | None
    values_ptr: Tensor
    logprobs_ptr: Tensor | None
    ref_logprobs_ptr: Tensor | None
    mask_ptr: Tensor | None


class Sequences(NamedTuple):
    """An entry a sequence, contiguous; None where there are none. Without cu_seqlens they are equally long."""

    rewards_ptr: Tensor | None
    bootstrap_ptr: Tensor | None
    lams_ptr: Tensor | None
    cu_seqlens_ptr: Tensor | None  # [batch + 1]


class Outputs(NamedTuple):
    """An entry a token, contiguous; no `kl` where there is none to compute."""

    advantages_ptr: Tensor
    returns_ptr: Tensor
    kl_ptr: Tensor | None


class Shaping(NamedTuple):
    """The numbers in R_t = scale * clip(r_t) - kl_coef * KL_t."""

    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    kl_coef: float = 0.0
    kl_estimator: int = 0


@triton.jit
def _start_of(sequence, sequences, length):
    """The sequence's first token, counted over the batch."""
    IS_PACKED: tl.constexpr = sequences.cu_seqlens_ptr is not None
    if IS_PACKED:
        return tl.load(sequences.cu_seqlens_ptr + sequence).to(tl.int64)
    else:
        return sequence.to(tl.int64) * length


@triton.jit
def _first_piece_of(sequence, sequences, length, BLOCK: tl.constexpr):
    """The number of a sequence's first piece.

    Piece p of sequence s lies in block p - s. So there is at most a piece a block and one a sequence more, however long
    the sequences are, which the host does not know.
    """
    return _start_of(sequence, sequences, length) // BLOCK + sequence


@triton.jit
def _sequence_of(piece, sequences, length, batch, BLOCK: tl.constexpr):
    """The last sequence whose first piece is not after `piece`."""
    sequence = piece * 0
    beyond = sequence + batch
    while beyond - sequence > 1:
        middle = (sequence + beyond) // 2
        is_before = _first_piece_of(middle, sequences, length, BLOCK) <= piece
        sequence = tl.where(is_before, middle, sequence)
        beyond = tl.where(is_before, beyond, middle)
    return sequence


@triton.jit
def _piece(piece, sequences, length, batch, BLOCK: tl.constexpr):
    """The sequence of a piece, the start of its block, and its first token and the one after its last."""
    sequence = _sequence_of(piece, sequences, length, batch, BLOCK)
    start = (piece - sequence).to(tl.int64) * BLOCK
    begin = tl.maximum(start, _start_of(sequence, sequences, length))
    end = tl.minimum(start + BLOCK, _start_of(sequence + 1, sequences, length))
    return sequence, start, begin, end


@triton.jit
def _ahead_of_last(sequence, sequences, gamma, DTYPE: tl.constexpr):
    """What is ahead of the last valid token: gamma * bootstrap + the sequence's reward."""
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
    """c and gamma - c, each rounded once."""
    HAS_LAMS: tl.constexpr = sequences.lams_ptr is not None
    gamma = tl.full([], gamma, tl.float64)
    if HAS_LAMS:
        decay = gamma * tl.load(sequences.lams_ptr + sequence).to(tl.float64)
    else:
        decay = gamma * lam
    return decay.to(DTYPE), (gamma - decay).to(DTYPE)


@triton.jit
def _window(start, begin, end, BLOCK: tl.constexpr):
    """The first lane of a block that is among the tokens [begin, end), and the one after the last."""
    first = tl.maximum(begin, start) - start
    beyond = tl.minimum(end, start + BLOCK) - start
    return first.to(tl.int32), beyond.to(tl.int32)


@triton.jit
def _among(first, beyond, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    return (lanes >= first) & (lanes < beyond)


@triton.jit
def _load(ptr, start, inside):
    """A block of a tensor, 0 where there is no tensor."""
    IS_GIVEN: tl.constexpr = ptr is not None
    if IS_GIVEN:
        return tl.load(ptr + start + tl.arange(0, inside.shape[0]), mask=inside, other=0)
    else:
        return tl.zeros_like(inside)


@triton.jit
def _load_all(tokens, start, inside):
    return (
        _load(tokens.rewards_ptr, start, inside),
        _load(tokens.values_ptr, start, inside),
        _load(tokens.logprobs_ptr, start, inside),
        _load(tokens.ref_logprobs_ptr, start, inside),
        _load(tokens.mask_ptr, start, inside),
    )


@triton.jit
def _store(ptr, start, block, first, beyond):
    lanes = tl.arange(0, block.shape[0])
    if beyond - first == block.shape[0]:
        tl.store(ptr + start + lanes, block)
    else:
        tl.store(ptr + start + lanes, block, mask=_among(first, beyond, block.shape[0]))


@triton.jit
def _load_tokens(tokens, start, first, beyond, size, shaping, KL_KIND: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """R_t, V_t and KL_t, 0 where a token is not valid, and which are: [BLOCK] each.

    Bounds that are not known to be multiples of anything would split a load into single elements. Those that are taken
    here reach into other sequences, but where they would reach beyond the tensors.
    """
    HAS_REWARDS: tl.constexpr = tokens.rewards_ptr is not None
    HAS_KL: tl.constexpr = tokens.logprobs_ptr is not None and tokens.ref_logprobs_ptr is not None
    HAS_MASK: tl.constexpr = tokens.mask_ptr is not None
    rounded = tl.cdiv(beyond, _ALIGNMENT) * _ALIGNMENT
    if start + rounded <= size:
        inside = _among(first // _ALIGNMENT * _ALIGNMENT, rounded, BLOCK)
        rewards, values, logprobs, ref_logprobs, mask = _load_all(tokens, start, inside)
    else:
        inside = _among(first, beyond, BLOCK)
        rewards, values, logprobs, ref_logprobs, mask = _load_all(tokens, start, inside)

    valid = _among(first, beyond, BLOCK)
    if HAS_MASK:
        valid = valid & (mask != 0)
    scale, low, high, kl_coef = shaping
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
def _maps(rewards, values, valid, decay, keep):
    """The map of every token and all that follow it in the block."""
    decays = tl.where(valid, decay, 1.0)
    return tl.associative_scan((decays, decay * rewards + keep * values), 0, _after, reverse=True)


@triton.jit
def _add(count, total, squares, more, added, added_squares):
    return count + more, total + added, squares + added_squares


@triton.jit
def _first(block):
    return tl.sum(tl.where(tl.arange(0, block.shape[0]) == 0, block, 0.0), 0)


@triton.jit
def _block_advantages(
    outputs,
    tokens,
    start,
    begin,
    end,
    size,
    ahead,
    decay,
    keep,
    shaping,
    KL_KIND: tl.constexpr,
    HAS_MOMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the advantages of one block; what is ahead of the token before it, and the moments of what it wrote."""
    HAS_KL: tl.constexpr = outputs.kl_ptr is not None
    lanes = tl.arange(0, BLOCK)
    first, beyond = _window(start, begin, end, BLOCK)
    rewards, values, kl, valid = _load_tokens(
        tokens, start, first, beyond, size, shaping, KL_KIND, ahead.dtype, BLOCK
    )

    decays, gains = _maps(rewards, values, valid, decay, keep)
    aheads = decays * ahead + gains  # of the token before each
    following = tl.gather(aheads, tl.minimum(lanes + 1, BLOCK - 1), 0)
    following = tl.where(lanes == BLOCK - 1, ahead, following)
    advantages = tl.where(valid, rewards - values + following, 0.0)

    _store(outputs.advantages_ptr, start, advantages, first, beyond)
    _store(outputs.returns_ptr, start, advantages + values, first, beyond)
    if HAS_KL:
        _store(outputs.kl_ptr, start, kl, first, beyond)
    count = 0
    total = tl.full([], 0.0, tl.float64)
    squares = tl.full([], 0.0, tl.float64)
    if HAS_MOMENTS:
        wide = advantages.to(tl.float64)
        count, total, squares = tl.reduce((valid.to(tl.int32), wide, wide * wide), 0, _add)
    return _first(aheads), count, total, squares


@triton.jit
def _shaping(scale, low, high, kl_coef, DTYPE: tl.constexpr):
    return (
        tl.full([], scale, DTYPE),
        tl.full([], low, DTYPE),
        tl.full([], high, DTYPE),
        tl.full([], kl_coef, DTYPE),
    )


@triton.jit(do_not_specialize=["size", "length", "batch"])
def _token_advantages_fwd_kernel(
    outputs,
    partial_ptr,  # [3, programs] fp64
    tokens,
    sequences,
    aheads_ptr,  # [pieces], or None: a program takes a sequence
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
    """A_t = R_t - V_t + ahead_t,   returns_t = A_t + V_t"""
    DTYPE: tl.constexpr = outputs.advantages_ptr.dtype.element_ty
    IN_PIECES: tl.constexpr = aheads_ptr is not None
    HAS_MOMENTS: tl.constexpr = partial_ptr is not None
    if IN_PIECES:
        sequence, start, begin, end = _piece(tl.program_id(0), sequences, length, batch, BLOCK)
        ahead = tl.load(aheads_ptr + tl.program_id(0))
    else:
        sequence = tl.program_id(0)
        begin = _start_of(sequence, sequences, length)
        end = _start_of(sequence + 1, sequences, length)
        start = tl.cdiv(end, _ALIGNMENT) * _ALIGNMENT - BLOCK
        ahead = _ahead_of_last(sequence, sequences, gamma, DTYPE)
    decay, keep = _coefficients(sequence, sequences, gamma, lam, DTYPE)
    shaping = _shaping(reward_scale, reward_low, reward_high, kl_coef, DTYPE)

    count = tl.full([], 0, tl.int32)
    total = tl.full([], 0.0, tl.float64)
    squares = tl.full([], 0.0, tl.float64)
    while start + BLOCK > begin:
        ahead, more, added, added_squares = _block_advantages(
            outputs, tokens, start, begin, end, size, ahead, decay, keep, shaping, KL_KIND, HAS_MOMENTS, BLOCK
        )
        count += more
        total += added
        squares += added_squares
        start -= BLOCK
    if HAS_MOMENTS:
        store_partial_moments(partial_ptr, count, total, squares)


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
    """The map of each piece: what is ahead of the token before it is decay * (what is ahead of its last token) + gain."""
    DTYPE: tl.constexpr = decays_ptr.dtype.element_ty
    sequence, start, begin, end = _piece(tl.program_id(0), sequences, length, batch, BLOCK)
    decay, keep = _coefficients(sequence, sequences, gamma, lam, DTYPE)
    shaping = _shaping(reward_scale, reward_low, reward_high, kl_coef, DTYPE)
    lanes = tl.arange(0, BLOCK)
    first, beyond = _window(start, begin, end, BLOCK)
    rewards, values, _, valid = _load_tokens(tokens, start, first, beyond, size, shaping, KL_KIND, DTYPE, BLOCK)
    decays, gains = _maps(rewards, values, valid, decay, keep)
    ptrs = tl.program_id(0) + 0 * lanes
    tl.store(decays_ptr + ptrs, decays, mask=lanes == 0)
    tl.store(gains_ptr + ptrs, gains, mask=lanes == 0)


@triton.jit(do_not_specialize=["length"])
def _piece_aheads_fwd_kernel(
    aheads_ptr,  # [pieces]
    decays_ptr,  # [pieces]
    gains_ptr,  # [pieces]
    sequences,
    length,
    gamma: tl.float64,
    BLOCK: tl.constexpr,
):
    """What is ahead of each piece's last token, a sequence a program."""
    sequence = tl.program_id(0)
    begin = _start_of(sequence, sequences, length)
    end = _start_of(sequence + 1, sequences, length)
    first = begin // BLOCK + sequence
    last = (end - 1) // BLOCK + sequence
    ahead = _ahead_of_last(sequence, sequences, gamma, aheads_ptr.dtype.element_ty)
    if end > begin:
        tl.store(aheads_ptr + last, ahead)
    lanes = tl.arange(0, BLOCK)
    while last >= first:
        pieces = last + 1 - BLOCK + lanes
        decays = tl.load(decays_ptr + pieces, mask=pieces >= first, other=1.0)
        gains = tl.load(gains_ptr + pieces, mask=pieces >= first, other=0.0)
        decays, gains = tl.associative_scan((decays, gains), 0, _after, reverse=True)
        aheads = decays * ahead + gains
        tl.store(aheads_ptr + pieces - 1, aheads, mask=pieces > first)
        ahead = _first(aheads)
        last -= BLOCK


def takes_pieces(batch: int, length: int, device: torch.device) -> bool:
    """Whether sequences of this mean length are so few, and so long, that a program each would not fill the GPU."""
    return length > _LONGEST_BLOCK and batch < _SEQUENCES_PER_MULTIPROCESSOR * multiprocessors(device)


def launch(
    outputs: Outputs,
    tokens: Tokens,
    sequences: Sequences,
    batch: int,
    gamma: float,
    lam: float,
    shaping: Shaping = Shaping(),
    *,
    has_moments: bool = False,
) -> Tensor | None:
    """Fills `outputs`; with `has_moments`, returns float64 `[3]`: count, sum and sum of squares of the advantages."""
    size, device = tokens.values_ptr.numel(), tokens.values_ptr.device
    length = size // max(batch, 1)  # the mean, when packed
    block = min(max(triton.next_power_of_2(length), _SHORTEST_BLOCK), _LONGEST_BLOCK)
    in_pieces = takes_pieces(batch, length, device)
    programs = size // block + batch if in_pieces else batch
    partial = torch.empty(3, programs if size else 0, dtype=torch.float64, device=device) if has_moments else None
    if size:
        numbers = (size, length, batch, gamma, lam, *shaping[:4])
        constants = {"KL_KIND": shaping.kl_estimator, "BLOCK": block, "num_warps": max(1, block // _TOKENS_PER_WARP)}
        aheads = None
        with on_device(tokens.values_ptr):
            if in_pieces:
                decays, gains, aheads = outputs.advantages_ptr.new_empty(3, programs)
                _piece_maps_fwd_kernel[(programs,)](decays, gains, tokens, sequences, *numbers, **constants)
                _piece_aheads_fwd_kernel[(batch,)](
                    aheads, decays, gains, sequences, length, gamma, BLOCK=block, num_warps=constants["num_warps"]
                )
            _token_advantages_fwd_kernel[(programs,)](
                outputs, partial, tokens, sequences, aheads, *numbers, **constants
            )
    return None if partial is None else partial.sum(1)


def aot_batch(batch: int, length: int, is_packed: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Meta tensors for `aot_cases`: an entry a token, an entry a sequence, and cu_seqlens."""
    shape = (batch * length,) if is_packed else (batch, length)
    per_token = torch.empty(shape, dtype=dtype, device="meta")
    per_sequence = torch.empty(batch, dtype=dtype, device="meta")
    return per_token, per_sequence, torch.empty(batch + 1, dtype=torch.int32, device="meta") if is_packed else None
