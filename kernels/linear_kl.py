"""The steps of `linear_kl` between the products: divergence of pairs of rows of logits, and its gradient.

What they compute, and how it fits together, is in `fgrl/ops/_divergence.py`. Rows are laid out as in `linear.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgrl.kernels._launch import FUSION, Case, flat, multiprocessors, on_device
from fgrl.kernels.linear import _scale

_WARPS = 4
_BLOCK = 1024
_PROGRAMS_PER_MULTIPROCESSOR = 4
_FORWARD, _REVERSE, _JSD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # in the order of `Divergence`


@triton.jit
def _log_prob(
    logits_ptr,
    bias_ptr,
    columns,
    vocabulary,
    stride,
    shift,
    log_sum,
    inverse_temperature,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
):
    """log p of the columns of a row, -inf past the vocabulary; p; and the derivative of the soft-cap."""
    logits = tl.load(logits_ptr + columns, mask=columns < stride, other=0.0)  # [BLOCK]
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + columns, mask=columns < vocabulary, other=0.0).to(logits.dtype)
    z, softcap_grad = _scale(logits, inverse_temperature, softcap, HAS_SOFTCAP)
    value = tl.where(columns < vocabulary, z - shift - log_sum, float("-inf"))
    return value, tl.exp(value), softcap_grad


@triton.jit
def _relative(weight, first, second):
    return tl.where(weight > 0, weight * (first - second), 0.0)


@triton.jit
def _log_mixture(p, q, beta):
    mixture = beta * q + (1.0 - beta) * p
    return tl.log(tl.where(mixture > 0, mixture, 1.0))


@triton.jit(do_not_specialize=["vocabulary", "blocks_a_part", "parts"])
def _kl_statistics_fwd_kernel(
    statistics_ptr,  # [2, parts, rows]
    student_ptr,
    teacher_ptr,
    bias_ptr,
    teacher_bias_ptr,
    normalizers_ptr,  # [4, rows]: m and log s of the student and of the teacher
    inverse_temperature: tl.float64,
    softcap: tl.float64,
    teacher_softcap: tl.float64,
    beta: tl.float64,
    vocabulary,
    blocks_a_part,
    parts,
    student_stride,
    teacher_stride,
    DIVERGENCE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEACHER_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The divergence of one part of one row, and the sum that the student's gradient needs."""
    row, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    size = tl.num_programs(0)
    rows = size // parts
    student_ptr += row.to(tl.int64) * student_stride
    teacher_ptr += row.to(tl.int64) * teacher_stride
    normalizers_ptr += row
    dtype: tl.constexpr = student_ptr.dtype.element_ty
    shift, log_sum = tl.load(normalizers_ptr), tl.load(normalizers_ptr + rows)
    teacher_shift, teacher_log_sum = tl.load(normalizers_ptr + 2 * rows), tl.load(normalizers_ptr + 3 * rows)
    beta = tl.full([], beta, dtype)

    of_student = tl.zeros([BLOCK], dtype)
    of_teacher = tl.zeros([BLOCK], dtype)
    first = part * blocks_a_part
    for block in range(first, first + blocks_a_part):
        columns = block * BLOCK + tl.arange(0, BLOCK)
        log_p, p, _ = _log_prob(
            student_ptr,
            bias_ptr,
            columns,
            vocabulary,
            student_stride,
            shift,
            log_sum,
            inverse_temperature,
            softcap,
            HAS_SOFTCAP,
        )
        log_q, q, _ = _log_prob(
            teacher_ptr,
            teacher_bias_ptr,
            columns,
            vocabulary,
            teacher_stride,
            teacher_shift,
            teacher_log_sum,
            inverse_temperature,
            teacher_softcap,
            HAS_TEACHER_SOFTCAP,
        )
        if DIVERGENCE == _FORWARD:
            of_teacher += _relative(q, log_q, log_p)
        elif DIVERGENCE == _REVERSE:
            of_student += _relative(p, log_p, log_q)
        else:
            log_m = _log_mixture(p, q, beta)
            of_student += _relative(p, log_p, log_m)
            of_teacher += _relative(q, log_q, log_m)
    student, teacher = tl.sum(of_student, 0), tl.sum(of_teacher, 0)
    if DIVERGENCE == _JSD:
        divergence = beta * teacher + (1.0 - beta) * student
    else:
        divergence = student + teacher
    position = part * rows + row
    tl.store(statistics_ptr + position, divergence)
    tl.store(statistics_ptr + size + position, student)


@triton.jit(do_not_specialize=["vocabulary", "rows"])
def _kl_gradient_bwd_kernel(
    out_ptr,
    student_ptr,
    teacher_ptr,
    bias_ptr,
    teacher_bias_ptr,
    normalizers_ptr,  # [4, rows]
    grads_ptr,  # [2, rows]: the sum of the student's terms, and what the gradient is multiplied by
    inverse_temperature: tl.float64,
    softcap: tl.float64,
    teacher_softcap: tl.float64,
    beta: tl.float64,
    vocabulary,
    rows,
    student_stride,
    teacher_stride,
    DIVERGENCE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEACHER_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """p - q, p (log p - log q - sum) or (1 - beta) p (log p - log m - sum), times the derivative of the soft-cap"""
    blocks = tl.cdiv(vocabulary, BLOCK)
    row = tl.program_id(0) // blocks
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    student_ptr += row.to(tl.int64) * student_stride
    teacher_ptr += row.to(tl.int64) * teacher_stride
    normalizers_ptr += row
    dtype: tl.constexpr = student_ptr.dtype.element_ty
    beta = tl.full([], beta, dtype)
    log_p, p, softcap_grad = _log_prob(
        student_ptr,
        bias_ptr,
        columns,
        vocabulary,
        student_stride,
        tl.load(normalizers_ptr),
        tl.load(normalizers_ptr + rows),
        inverse_temperature,
        softcap,
        HAS_SOFTCAP,
    )
    log_q, q, _ = _log_prob(
        teacher_ptr,
        teacher_bias_ptr,
        columns,
        vocabulary,
        teacher_stride,
        tl.load(normalizers_ptr + 2 * rows.to(tl.int64)),
        tl.load(normalizers_ptr + 3 * rows.to(tl.int64)),
        inverse_temperature,
        teacher_softcap,
        HAS_TEACHER_SOFTCAP,
    )
    of_student, scale = tl.load(grads_ptr + row), tl.load(grads_ptr + rows + row)
    if DIVERGENCE == _FORWARD:
        grad = p - q
    elif DIVERGENCE == _REVERSE:
        grad = tl.where(p > 0, p * (log_p - log_q - of_student), 0.0)
    else:
        grad = tl.where(p > 0, (1.0 - beta) * p * (log_p - _log_mixture(p, q, beta) - of_student), 0.0)
    tl.store(
        out_ptr + row.to(tl.int64) * student_stride + columns,
        grad * scale * softcap_grad,
        mask=columns < student_stride,
    )


def kl_statistics(
    student: Tensor,
    teacher: Tensor,
    bias: Tensor | None,
    teacher_bias: Tensor | None,
    normalizers: Tensor,
    temperature: float,
    softcap: float | None,
    teacher_softcap: float | None,
    divergence: int,
    beta: float,
    *,
    block: int = _BLOCK,
    min_programs: int | None = None,
) -> Tensor:
    """`[2, parts, R]` of logits `[R, V]` of both sides: the divergence, and the sum in the student's gradient.

    Reads the logits of both once. A row has several parts where rows alone make fewer than `min_programs` programs, by
    default what fills the GPU.
    """
    rows, vocabulary = student.shape
    blocks = triton.cdiv(vocabulary, block)
    if min_programs is None:
        min_programs = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(student.device)
    blocks_a_part = triton.cdiv(blocks, min(blocks, triton.cdiv(min_programs, rows)))
    parts = triton.cdiv(blocks, blocks_a_part)
    statistics = student.new_empty(2, parts, rows)
    with on_device(student):
        _kl_statistics_fwd_kernel[(rows * parts,)](
            statistics,
            student,
            teacher,
            flat(bias),
            flat(teacher_bias),
            normalizers,
            1 / temperature,
            softcap or 1.0,
            teacher_softcap or 1.0,
            beta,
            vocabulary,
            blocks_a_part,
            parts,
            student.stride(0),
            teacher.stride(0),
            DIVERGENCE=divergence,
            HAS_SOFTCAP=softcap is not None,
            HAS_TEACHER_SOFTCAP=teacher_softcap is not None,
            BLOCK=block,
            num_warps=_WARPS,
            **FUSION,
        )
    return statistics


def kl_gradient(
    student: Tensor,
    teacher: Tensor,
    bias: Tensor | None,
    teacher_bias: Tensor | None,
    normalizers: Tensor,
    grads: Tensor,
    temperature: float,
    softcap: float | None,
    teacher_softcap: float | None,
    divergence: int,
    beta: float,
    out: Tensor,
    *,
    block: int = _BLOCK,
) -> None:
    """The gradient by the student's logits `[R, V]` into `out`, which has their strides and may be them.

    Reads the logits of both once and writes as many gradients as one side has.
    """
    rows, vocabulary = student.shape
    with on_device(student):
        _kl_gradient_bwd_kernel[(rows * triton.cdiv(vocabulary, block),)](
            out,
            student,
            teacher,
            flat(bias),
            flat(teacher_bias),
            normalizers,
            grads,
            1 / temperature,
            softcap or 1.0,
            teacher_softcap or 1.0,
            beta,
            vocabulary,
            rows,
            student.stride(0),
            teacher.stride(0),
            DIVERGENCE=divergence,
            HAS_SOFTCAP=softcap is not None,
            HAS_TEACHER_SOFTCAP=teacher_softcap is not None,
            BLOCK=block,
            num_warps=_WARPS,
            **FUSION,
        )


def aot_cases() -> Iterator[Case]:
    """Each divergence of a chunk of a large vocabulary in fp32 with gradients in bf16, and all that can be added."""
    vocabulary = 151936
    for dtype, options in (
        *((torch.float32, (None, None, divergence)) for divergence in range(3)),
        (torch.float32, (30.0, 30.0, 2)),
        (torch.float64, (30.0, 30.0, 2)),
    ):
        softcap, teacher_softcap, divergence = options
        logits = torch.empty(1024, vocabulary, dtype=dtype, device="meta")
        bias = None if softcap is None else torch.empty(vocabulary, dtype=torch.bfloat16, device="meta")
        normalizers, grads = (torch.empty(count, 1024, dtype=dtype, device="meta") for count in (4, 2))
        out = logits.to(torch.bfloat16) if dtype == torch.float32 else logits
        label = f"{divergence} {str(dtype).removeprefix('torch.')}{'' if bias is None else ' bias softcap'}"
        scalars = (0.7, softcap, teacher_softcap, divergence, 0.5)
        pair = (logits, logits, bias, bias, normalizers)
        yield Case(f"statistics {label}", kl_statistics, (*pair, *scalars))
        yield Case(f"gradient {label}", kl_gradient, (*pair, grads, *scalars, out))
