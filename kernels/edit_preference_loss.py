"""The edited-token Bradley-Terry loss of pairs: masked sums, loss and both gradients in one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._launch import FUSION, Case, flags, on_device
from fgrl.types import compute_dtype

_BLOCK = 512
_WARPS = 4


class Side(NamedTuple):
    """`[pairs, width]` each; no mask means all tokens."""

    rewards_ptr: Tensor
    edits_ptr: Tensor
    mask_ptr: Tensor | None


@triton.jit
def _load_block(side, row, start, width, BLOCK: tl.constexpr):
    """Rewards in fp64, and which of the tokens are edited and which unchanged; neither outside the row or the mask."""
    HAS_MASK: tl.constexpr = side.mask_ptr is not None
    lanes = start + tl.arange(0, BLOCK)
    inside = lanes < width
    rewards = tl.load(side.rewards_ptr + row + lanes, mask=inside, other=0).to(tl.float64)  # [BLOCK]
    is_edited = tl.load(side.edits_ptr + row + lanes, mask=inside, other=0) != 0
    valid = inside
    if HAS_MASK:
        valid &= tl.load(side.mask_ptr + row + lanes, mask=inside, other=0) != 0
    return rewards, valid & is_edited, valid & ~is_edited


@triton.jit
def _sum_side(side, row, width, IS_MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """Score of a row and its divisor, sum of squares and number of the unchanged rewards: scalars in fp64."""
    score = tl.zeros([BLOCK], tl.float64)
    squares = tl.zeros([BLOCK], tl.float64)
    edited_count = tl.zeros([BLOCK], tl.int32)
    unchanged_count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, width, BLOCK):
        rewards, is_edited, is_unchanged = _load_block(side, row, start, width, BLOCK)
        score += tl.where(is_edited, rewards, 0.0)
        squares += tl.where(is_unchanged, rewards * rewards, 0.0)
        edited_count += is_edited.to(tl.int32)
        unchanged_count += is_unchanged.to(tl.int32)
    divisor = tl.full([], 1.0, tl.float64)
    if IS_MEAN:
        divisor = tl.maximum(tl.sum(edited_count, 0), 1).to(tl.float64)
    return tl.sum(score, 0) / divisor, divisor, tl.sum(squares, 0), tl.sum(unchanged_count, 0).to(tl.float64)


@triton.jit
def _store_grad(
    grad_ptr, side, row, width, edited_grad, unchanged_factor, HAS_PENALTY: tl.constexpr, BLOCK: tl.constexpr
):
    """`edited_grad` at the edited tokens, `unchanged_factor` times the reward at the unchanged ones."""
    for start in range(0, width, BLOCK):
        rewards, is_edited, is_unchanged = _load_block(side, row, start, width, BLOCK)
        grad = tl.where(is_edited, edited_grad, 0.0)
        if HAS_PENALTY:
            grad = tl.where(is_unchanged, unchanged_factor * rewards, grad)
        lanes = start + tl.arange(0, BLOCK)
        tl.store(grad_ptr + row + lanes, grad, mask=lanes < width)


@triton.jit(do_not_specialize=["chosen_width", "rejected_width"])
def _edit_preference_loss_fwd_kernel(
    losses_ptr,  # [pairs] fp64
    margins_ptr,
    chosen_grad_ptr,
    rejected_grad_ptr,
    chosen,
    rejected,
    chosen_width,
    rejected_width,
    unchanged_weight: tl.float64,
    margin: tl.float64,
    IS_MEAN: tl.constexpr,
    HAS_PENALTY: tl.constexpr,
    GRAD_CHOSEN: tl.constexpr,
    GRAD_REJECTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One pair. With U the edited tokens of a side and K the unchanged ones of both:

    S = sum of r_t over U, or their mean;  x = S_chosen - S_rejected - margin
    loss = -log sigmoid(x) + unchanged_weight * mean of r_t^2 over K
    d loss / d r_t = -+ sigmoid(-x) (over the tokens of U, for a mean) in U,  2 * unchanged_weight * r_t / |K| in K
    """
    pair = tl.program_id(0).to(tl.int64)
    chosen_row = pair * chosen_width
    rejected_row = pair * rejected_width
    chosen_score, chosen_divisor, squares, unchanged = _sum_side(chosen, chosen_row, chosen_width, IS_MEAN, BLOCK)
    rejected_score, rejected_divisor, rejected_squares, rejected_unchanged = _sum_side(
        rejected, rejected_row, rejected_width, IS_MEAN, BLOCK
    )
    x = chosen_score - rejected_score - tl.full([], margin, tl.float64)
    exp_minus_abs = tl.exp(-tl.abs(x))
    loss = tl.where(x < 0, -x, 0.0) + tl.log(1.0 + exp_minus_abs)
    x_grad = tl.where(x < 0, 1.0, exp_minus_abs) / (1.0 + exp_minus_abs)
    penalty = tl.full([], unchanged_weight, tl.float64) / tl.maximum(unchanged + rejected_unchanged, 1.0)
    if HAS_PENALTY:
        loss += penalty * (squares + rejected_squares)
    tl.store(losses_ptr + pair, loss)
    tl.store(margins_ptr + pair, chosen_score - rejected_score)
    if GRAD_CHOSEN:
        edited_grad = -x_grad / chosen_divisor
        _store_grad(chosen_grad_ptr, chosen, chosen_row, chosen_width, edited_grad, 2.0 * penalty, HAS_PENALTY, BLOCK)
    if GRAD_REJECTED:
        edited_grad = x_grad / rejected_divisor
        _store_grad(
            rejected_grad_ptr, rejected, rejected_row, rejected_width, edited_grad, 2.0 * penalty, HAS_PENALTY, BLOCK
        )


def edit_preference_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    chosen_edits: Tensor,
    rejected_edits: Tensor,
    chosen_mask: Tensor | None,
    rejected_mask: Tensor | None,
    mean: bool,
    unchanged_weight: float,
    margin: float,
    grad_chosen_rewards: bool,
    grad_rejected_rewards: bool,
    *,
    block: int = _BLOCK,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, margins, and gradients up to a scale; see `fgrl.ops.edit_preference_loss`.

    A program a pair reads its rewards, edits and masks twice, the second time from the cache, and writes the gradients
    once: 10 bytes a token in fp32 with a mask.
    """
    dtype, device, pairs = compute_dtype(chosen_rewards, rejected_rewards), chosen_rewards.device, len(chosen_rewards)
    chosen_grad, rejected_grad = (
        torch.empty(rewards.shape if wanted else 0, dtype=dtype, device=device)
        for rewards, wanted in ((chosen_rewards, grad_chosen_rewards), (rejected_rewards, grad_rejected_rewards))
    )
    losses = torch.empty(pairs, dtype=torch.float64, device=device)
    margins = torch.empty(pairs, dtype=dtype, device=device)
    if pairs:
        with on_device(chosen_rewards):
            _edit_preference_loss_fwd_kernel[(pairs,)](
                losses,
                margins,
                chosen_grad,
                rejected_grad,
                Side(chosen_rewards.contiguous(), flags(chosen_edits), flags(chosen_mask)),
                Side(rejected_rewards.contiguous(), flags(rejected_edits), flags(rejected_mask)),
                chosen_rewards.shape[1],
                rejected_rewards.shape[1],
                unchanged_weight,
                margin,
                IS_MEAN=mean,
                HAS_PENALTY=unchanged_weight != 0,
                GRAD_CHOSEN=grad_chosen_rewards,
                GRAD_REJECTED=grad_rejected_rewards,
                BLOCK=block,
                num_warps=_WARPS,
                **FUSION,
            )
    factor = 1 / max(pairs, 1)
    scale = torch.full((), factor, dtype=dtype, device=device)
    return (losses.sum() * factor).to(dtype), margins, scale, chosen_grad, rejected_grad


def aot_cases() -> Iterator[Case]:
    """Sums and means, with every input and with the fewest, in fp32, bf16 and fp64."""
    for label, dtype, full in (
        ("float32", torch.float32, False),
        ("float32 all inputs", torch.float32, True),
        ("bfloat16 all inputs", torch.bfloat16, True),
        ("float64 all inputs", torch.float64, True),
    ):
        rewards = torch.empty(512, 1000, dtype=dtype, device="meta")
        edits = torch.empty(512, 1000, dtype=torch.bool, device="meta")
        mask = edits if full else None
        arguments = (rewards, rewards, edits, edits, mask, mask, full, 0.1 * full, 0.0, True, True)
        yield Case(label, edit_preference_loss, arguments)
