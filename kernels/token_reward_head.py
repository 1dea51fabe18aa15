"""The token reward head: a few dot products with every row of hidden states, behind an RMSNorm on request."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._launch import FUSION, Case, multiprocessors, on_device
from fgrl.types import compute_dtype

_TRITON_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
_WARPS = 4
_MAX_COLUMNS = 1024  # of a block
_PROGRAMS_PER_MULTIPROCESSOR = 4
_DOT_HEADS = 5  # from here on the rewards are a matrix product
_TILE = 4096
_SUM_PARTS, _SUM_COLUMNS = 16, 64


@triton.jit
def _load_weights(
    weight_ptr,
    norm_weight_ptr,
    head,
    column,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """norm_weight * weight of these heads and columns, 0 past the last ones."""
    HAS_NORM: tl.constexpr = norm_weight_ptr is not None
    inside = (head < HEADS)[:, None] & (column < WIDTH)[None, :]
    weight = tl.load(weight_ptr + head[:, None] * WIDTH + column[None, :], mask=inside, other=0).to(DTYPE)
    if HAS_NORM:
        weight *= tl.load(norm_weight_ptr + column, mask=column < WIDTH, other=0).to(DTYPE)[None, :]
    return weight  # [BLOCK_K, BLOCK_D]


@triton.jit(do_not_specialize=["rows"])
def _token_reward_head_fwd_kernel(
    rewards_ptr,  # [N, K]
    scores_ptr,  # [N, K]
    rstd_ptr,  # [N]
    hidden_ptr,
    weight_ptr,  # [K, D]
    bias_ptr,  # [K]
    norm_weight_ptr,  # [D]
    rows,
    hidden_stride,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    NORM_EPS: tl.constexpr,
    DTYPE: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """z_k = rstd * sum_d h_d * norm_weight_d * w_kd,   r_k = z_k + b_k,   rstd = 1 / sqrt(mean(h^2) + eps)"""
    HAS_BIAS: tl.constexpr = bias_ptr is not None
    HAS_NORM: tl.constexpr = norm_weight_ptr is not None
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.arange(0, BLOCK_K)
    # Without a matrix product each lane adds up its own columns; threads are added once, after the last block.
    if DOT_DTYPE is None:
        products = tl.zeros([BLOCK_N, BLOCK_K, BLOCK_D], DTYPE)
    else:
        scores = tl.zeros([BLOCK_N, BLOCK_K], DTYPE)
    squares = tl.zeros([BLOCK_N, BLOCK_D], DTYPE)
    for start in range(0, WIDTH, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
        hidden = tl.load(hidden_ptr + row[:, None] * hidden_stride + column[None, :], mask=inside, other=0)
        weight = _load_weights(weight_ptr, norm_weight_ptr, head, column, HEADS, WIDTH, DTYPE)
        if HAS_NORM:
            squares += hidden.to(DTYPE) * hidden.to(DTYPE)
        if DOT_DTYPE is None:
            products += hidden.to(DTYPE)[:, None, :] * weight[None, :, :]
        else:
            weight = tl.trans(weight).to(DOT_DTYPE)
            scores = tl.dot(hidden.to(DOT_DTYPE), weight, scores, input_precision="ieee", out_dtype=DTYPE)

    if DOT_DTYPE is None:
        scores = tl.sum(products, 2)
    at = row[:, None] * HEADS + head[None, :]
    inside = (row < rows)[:, None] & (head < HEADS)[None, :]
    if HAS_NORM:
        rstd = tl.rsqrt(tl.sum(squares, 1) / max(WIDTH, 1) + NORM_EPS)
        tl.store(rstd_ptr + row, rstd, mask=row < rows)
        scores *= rstd[:, None]
        tl.store(scores_ptr + at, scores, mask=inside)
    if HAS_BIAS:
        scores += tl.load(bias_ptr + head, mask=head < HEADS, other=0).to(DTYPE)[None, :]
    tl.store(rewards_ptr + at, scores, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _token_reward_head_bwd_kernel(
    hidden_grad_ptr,  # [N, D]
    moments_ptr,  # [parts, K, D]
    grad_sums_ptr,  # [parts, K]
    grad_ptr,  # [N, K]
    hidden_ptr,
    weight_ptr,  # [K, D]
    norm_weight_ptr,  # [D]
    scores_ptr,  # [N, K]
    rstd_ptr,  # [N]
    rows,
    hidden_stride,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dh = rstd * (sum_k g_k * norm_weight * w_k - h * rstd * c),   c = sum_k g_k * z_k / D,   and a part of the sums
    M_k = sum over rows of g_k * rstd * h   and   sum over rows of g_k

    A program works on the same columns of all its rows. It needs no sum over a row: `z` and `rstd` come from the
    forward pass.
    """
    HAS_NORM: tl.constexpr = norm_weight_ptr is not None
    NEEDS_HIDDEN: tl.constexpr = hidden_grad_ptr is not None
    SUMS_HIDDEN: tl.constexpr = moments_ptr is not None
    part = tl.program_id(1)
    head = tl.arange(0, BLOCK_K)
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    if NEEDS_HIDDEN:
        weight = _load_weights(weight_ptr, norm_weight_ptr, head, column, HEADS, WIDTH, DTYPE)
    moments = tl.zeros([BLOCK_K, BLOCK_D], DTYPE)
    grad_sums = tl.zeros([BLOCK_K], DTYPE)
    for start in range(part * BLOCK_N, rows, tl.num_programs(1) * BLOCK_N):
        row = start + tl.arange(0, BLOCK_N).to(tl.int64)
        at = row[:, None] * HEADS + head[None, :]
        has_grad = (row < rows)[:, None] & (head < HEADS)[None, :]
        inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
        grad = tl.load(grad_ptr + at, mask=has_grad, other=0)  # [BLOCK_N, BLOCK_K]
        grad_sums += tl.sum(grad, 0)
        scaled = grad
        if HAS_NORM:
            rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0)
            scaled *= rstd[:, None]
        if HAS_NORM or SUMS_HIDDEN:
            hidden = tl.load(hidden_ptr + row[:, None] * hidden_stride + column[None, :], mask=inside, other=0)
            hidden = hidden.to(DTYPE)
        if SUMS_HIDDEN:
            moments += tl.sum(scaled[:, :, None] * hidden[:, None, :], 0)
        if NEEDS_HIDDEN:
            hidden_grad = tl.sum(grad[:, :, None] * weight[None, :, :], 1)  # [BLOCK_N, BLOCK_D]
            if HAS_NORM:
                scores = tl.load(scores_ptr + at, mask=has_grad, other=0)
                norm_factor = rstd * (tl.sum(grad * scores, 1) / max(WIDTH, 1))
                hidden_grad = rstd[:, None] * (hidden_grad - norm_factor[:, None] * hidden)
            tl.store(hidden_grad_ptr + row[:, None] * WIDTH + column[None, :], hidden_grad, mask=inside)
    if SUMS_HIDDEN:
        sums_at = moments_ptr + (part.to(tl.int64) * HEADS + head)[:, None] * WIDTH + column[None, :]
        tl.store(sums_at, moments, mask=(head < HEADS)[:, None] & (column < WIDTH)[None, :])
    if tl.program_id(0) == 0:
        tl.store(grad_sums_ptr + part * HEADS + head, grad_sums, mask=head < HEADS)


@triton.jit(do_not_specialize=["parts"])
def _token_reward_head_weight_bwd_kernel(
    weight_grad_ptr,  # [K, D]
    bias_grad_ptr,  # [K]
    norm_weight_grad_ptr,  # [D]
    moments_ptr,  # [parts, K, D]
    grad_sums_ptr,  # [parts, K]
    weight_ptr,  # [K, D]
    norm_weight_ptr,  # [D]
    parts,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dw_k = norm_weight * M_k,   db_k = sum of g_k,   dnorm_weight = sum_k w_k * M_k"""
    HAS_NORM: tl.constexpr = norm_weight_ptr is not None
    NEEDS_WEIGHT: tl.constexpr = weight_grad_ptr is not None
    NEEDS_BIAS: tl.constexpr = bias_grad_ptr is not None
    NEEDS_NORM_WEIGHT: tl.constexpr = norm_weight_grad_ptr is not None
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    norm_weight_grad = tl.zeros([BLOCK_D], DTYPE)
    for head in range(HEADS):
        if NEEDS_WEIGHT or NEEDS_NORM_WEIGHT:
            sums = tl.zeros([BLOCK_P, BLOCK_D], DTYPE)
            for start in range(0, parts, BLOCK_P):
                part = start + tl.arange(0, BLOCK_P)
                at = (part.to(tl.int64) * HEADS + head)[:, None] * WIDTH + column[None, :]
                sums += tl.load(moments_ptr + at, mask=(part < parts)[:, None] & (column < WIDTH)[None, :], other=0)
            moment = tl.sum(sums, 0)  # [BLOCK_D]
            at = head * WIDTH + column
            if NEEDS_NORM_WEIGHT:
                norm_weight_grad += tl.load(weight_ptr + at, mask=column < WIDTH, other=0).to(DTYPE) * moment
            if HAS_NORM:
                moment *= tl.load(norm_weight_ptr + column, mask=column < WIDTH, other=0).to(DTYPE)
            if NEEDS_WEIGHT:
                tl.store(weight_grad_ptr + at, moment, mask=column < WIDTH)
        if NEEDS_BIAS and tl.program_id(0) == 0:
            grad_sum = tl.zeros([BLOCK_P], DTYPE)
            for start in range(0, parts, BLOCK_P):
                part = start + tl.arange(0, BLOCK_P)
                grad_sum += tl.load(grad_sums_ptr + part * HEADS + head, mask=part < parts, other=0)
            tl.store(bias_grad_ptr + head, tl.sum(grad_sum, 0))
    if NEEDS_NORM_WEIGHT:
        tl.store(norm_weight_grad_ptr + column, norm_weight_grad, mask=column < WIDTH)


def token_reward_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_eps: float,
    *,
    max_columns: int = _MAX_COLUMNS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, and scores and rstd for the backward pass: see `fgrl/ops/token_reward_head.py`.

    Reads hidden once. `2 K D` flops a row.
    """
    leading, width, heads = hidden.shape[:-1], hidden.shape[-1], _heads(weight)
    dtype = compute_dtype(hidden, weight, bias, norm_weight)
    rewards = torch.empty((*leading, *weight.shape[:-1]), dtype=dtype, device=hidden.device)
    has_norm = norm_weight is not None
    scores = torch.empty_like(rewards) if has_norm else rewards.new_empty(0)
    rstd = rewards.new_empty(leading) if has_norm else rewards.new_empty(0)
    if rewards.numel() == 0:
        return rewards, scores, rstd
    flat = _flat(hidden)
    as_dot = heads >= _DOT_HEADS
    # Products of two numbers of 16 bits are exact in fp32; the fused weights are not of 16 bits. Triton's interpreter,
    # which runs on CPU tensors, has no bf16 products: it would multiply the bits of the numbers.
    has_products = hidden.dtype == torch.float16 or (hidden.dtype == torch.bfloat16 and hidden.device.type != "cpu")
    exact = not has_norm and dtype == torch.float32 and hidden.dtype == weight.dtype and has_products
    dot_dtype = _TRITON_DTYPES[hidden.dtype if exact else dtype] if as_dot else None
    # Without a product a lane has a sum a column and, in a norm, a square: they stay in registers.
    columns = 256 if dtype == torch.float64 else 512
    block_n, block_d = (32, 128 if exact else 16) if as_dot else (8, columns // triton.next_power_of_2(heads))
    with on_device(hidden):
        _token_reward_head_fwd_kernel[(triton.cdiv(flat.shape[0], block_n),)](
            rewards,
            scores,
            rstd,
            flat,
            weight.contiguous(),
            None if bias is None else bias.contiguous(),
            None if norm_weight is None else norm_weight.contiguous(),
            flat.shape[0],
            flat.stride(0),
            HEADS=heads,
            WIDTH=width,
            NORM_EPS=norm_eps,
            DTYPE=_TRITON_DTYPES[dtype],
            DOT_DTYPE=dot_dtype,
            BLOCK_N=block_n,
            BLOCK_K=max(16, triton.next_power_of_2(heads)) if as_dot else triton.next_power_of_2(heads),
            BLOCK_D=min(block_d, max_columns),
            num_warps=_WARPS,
            **FUSION,
        )
    return rewards, scores, rstd


def token_reward_head_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    scores: Tensor,
    rstd: Tensor,
    needs_hidden: bool,
    needs_weight: bool,
    needs_bias: bool,
    needs_norm_weight: bool,
    *,
    max_columns: int = _MAX_COLUMNS,
    max_programs: int | None = None,
) -> list[Tensor]:
    """The gradients that are needed, in the order of the inputs.

    Reads hidden once and writes its gradient once. Sums over rows are taken in two stages in a fixed order: of the rows
    of a program, and of the programs. `4 K D` flops a row.
    """
    dtype = compute_dtype(hidden, weight, bias, norm_weight)
    new = torch.zeros if grad.numel() == 0 else torch.empty
    hidden_grad, weight_grad, bias_grad, norm_weight_grad = grads = [
        new(tensor.shape, dtype=tensor.dtype, device=tensor.device) if need and tensor is not None else None
        for tensor, need in (
            (hidden, needs_hidden),
            (weight, needs_weight),
            (bias, needs_bias),
            (norm_weight, needs_norm_weight),
        )
    ]
    found = [tensor for tensor in grads if tensor is not None]
    if grad.numel() == 0:
        return found
    flat, width, heads = _flat(hidden), hidden.shape[-1], _heads(weight)
    weight, norm_weight = weight.contiguous(), None if norm_weight is None else norm_weight.contiguous()
    sums_hidden = needs_weight or needs_norm_weight
    block_k = triton.next_power_of_2(heads)
    # Two tiles of so many numbers stay in registers, and a thread has all heads of its columns.
    tile = _TILE // 8 if dtype == torch.float64 else _TILE
    # Hidden states may have no width, and the bias a gradient all the same.
    block_d = min(tile // block_k, triton.next_power_of_2(max(width, 1)), max_columns)
    block_n = min(4, 64 // block_k)
    columns = max(triton.cdiv(width, block_d), 1)
    if max_programs is None:
        max_programs = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(hidden.device)
    parts = min(triton.cdiv(max_programs, columns), triton.cdiv(flat.shape[0], block_n))
    moments = torch.empty(parts, heads, width, dtype=dtype, device=hidden.device) if sums_hidden else None
    grad_sums = torch.empty(parts, heads, dtype=dtype, device=hidden.device)
    shared = {"HEADS": heads, "WIDTH": width, "DTYPE": _TRITON_DTYPES[dtype]}
    with on_device(hidden):
        _token_reward_head_bwd_kernel[(columns, parts)](
            hidden_grad,
            moments,
            grad_sums,
            grad.contiguous(),
            flat,
            weight,
            norm_weight,
            scores,
            rstd,
            flat.shape[0],
            flat.stride(0),
            **shared,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            BLOCK_D=block_d,
            num_warps=_WARPS,
            **FUSION,
        )
        if sums_hidden or needs_bias:
            _token_reward_head_weight_bwd_kernel[(max(triton.cdiv(width, _SUM_COLUMNS), 1) if sums_hidden else 1,)](
                weight_grad,
                bias_grad,
                norm_weight_grad,
                moments,
                grad_sums,
                weight,
                norm_weight,
                parts,
                **shared,
                BLOCK_P=_SUM_PARTS,
                BLOCK_D=_SUM_COLUMNS,
                num_warps=_WARPS,
                **FUSION,
            )
    return found


def _heads(weight: Tensor) -> int:
    return 1 if weight.ndim == 1 else weight.shape[0]


def _flat(hidden: Tensor) -> Tensor:
    """`[N, D]` with the elements of a row side by side: a view wherever there can be one."""
    flat = hidden.reshape(math.prod(hidden.shape[:-1]), hidden.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def aot_cases() -> Iterator[Case]:
    """One head in every dtype, with and without the norm; several heads; a width that is no multiple of anything."""
    for dtype, heads, width, has_norm in (
        (torch.bfloat16, 1, 4096, False),
        (torch.bfloat16, 1, 4096, True),
        (torch.float32, 1, 16384, True),
        (torch.float64, 1, 4096, True),
        (torch.bfloat16, 4, 4001, True),
        (torch.bfloat16, 19, 4096, False),
        (torch.float32, 32, 4096, True),
    ):
        hidden = torch.empty(8192, width, dtype=dtype, device="meta")
        weight, bias = hidden.new_empty(heads, width), hidden.new_empty(heads)
        norm_weight = hidden.new_empty(width) if has_norm else None
        name = str(dtype).removeprefix("torch.")
        label = f"{name} K={heads} D={width}{' norm' if has_norm else ''}"
        yield Case(f"{label} forward", token_reward_head, (hidden, weight, bias, norm_weight, 1e-6))
        rewards, scores, rstd = (
            hidden.new_empty(8192, *ends, dtype=compute_dtype(hidden)) for ends in ([heads],) * 2 + ([],)
        )
        inputs = (rewards, hidden, weight, bias, norm_weight, scores, rstd)
        yield Case(f"{label} backward", token_reward_head_backward, (*inputs, True, True, True, has_norm))
        if heads == 1 and dtype == torch.bfloat16:
            yield Case(f"{label} frozen head", token_reward_head_backward, (*inputs, True, False, False, False))
