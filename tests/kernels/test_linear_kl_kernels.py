"""The kernels of `linear_kl`: parts of rows, tails, shorter gradients, aliased output."""

from __future__ import annotations

import math

import pytest
import torch
from test_linear_kernels import rows, scaled
from torch import Tensor

triton = pytest.importorskip("triton")

from fgrl.kernels.linear_kl import kl_gradient, kl_statistics  # noqa: E402

BETA, SOFTCAP, TEACHER_SOFTCAP = 0.3, 4.0, 3.0


def expected(student: Tensor, teacher: Tensor, divergence: int) -> tuple[Tensor, Tensor, Tensor]:
    """Divergence, the sum of the student's terms, and the gradient by the student's z, from logits in fp64."""
    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    mixture = torch.logaddexp(q + math.log(BETA), p + math.log1p(-BETA))

    def relative(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(first.exp() > 0, first.exp() * (first - second), 0)

    if divergence == 0:
        return relative(q, p).sum(-1), torch.zeros(len(p)), p.exp() - q.exp()
    terms = relative(p, q if divergence == 1 else mixture)
    of_student = terms.sum(-1)
    grad = terms - p.exp() * of_student[:, None]
    if divergence == 1:
        return of_student, of_student, grad
    return BETA * relative(q, mixture).sum(-1) + (1 - BETA) * of_student, of_student, (1 - BETA) * grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("divergence", [0, 1, 2], ids=["forward", "reverse", "jsd"])
@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "bias, softcap"])
@pytest.mark.parametrize("programs", [1, 4], ids=["one part", "parts"])
@pytest.mark.parametrize("vocabulary", [1, 31, 32, 200])
def test_statistics_and_gradient(
    vocabulary: int, programs: int, is_plain: bool, divergence: int, dtype: torch.dtype, device: torch.device
) -> None:
    assert_right(vocabulary, is_plain, divergence, dtype, device, {"block": 32, "min_programs": 3 * programs})


@pytest.mark.parametrize("divergence", [0, 1, 2], ids=["forward", "reverse", "jsd"])
def test_shipped_blocks(divergence: int, device: torch.device) -> None:
    assert_right(2100, False, divergence, torch.float32, device, {})


def assert_right(
    vocabulary: int, is_plain: bool, divergence: int, dtype: torch.dtype, device: torch.device, split: dict[str, int]
) -> None:
    student, teacher = (rows(3, vocabulary, dtype, device) for _ in range(2))
    caps = (None, None) if is_plain else (SOFTCAP, TEACHER_SOFTCAP)
    biases = (None, None) if is_plain else tuple(torch.randn(2, vocabulary, device=device).bfloat16())
    if not is_plain and vocabulary > 2:
        for bias in biases:
            bias[1] = float("-inf")  # what no soft-cap lets through is as likely as its lowest value
    zs = [scaled(side.double(), *rest) for side, *rest in zip((student, teacher), biases, caps, strict=True)]
    normalizers = torch.stack(
        [part for z in zs for part in (z.amax(-1), (z - z.amax(-1, keepdim=True)).exp().sum(-1).log())]
    ).to(dtype)
    scalars = (0.7, *caps, divergence, BETA)
    parts = kl_statistics(student, teacher, *biases, normalizers, *scalars, **split)
    assert parts.shape[1] == 1 or split.get("min_programs", 4) > 3
    value, of_student, by_z = expected(*zs, divergence)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(parts[0].sum(0).double(), value, **tolerance)
    torch.testing.assert_close(parts[1].sum(0).double(), of_student.double(), **tolerance)

    scale = torch.randn(3, dtype=dtype, device=device)
    grads = torch.stack([of_student.to(dtype), scale])
    wanted = by_z * scale[:, None]
    if not is_plain:
        wanted = wanted * (1 - (zs[0] * 0.7 / SOFTCAP).square())
    blocks = {"block": split["block"]} if split else {}
    pair = (student, teacher, *biases, normalizers, grads)
    if dtype == torch.float32:
        shorter = rows(3, vocabulary, torch.bfloat16, device)
        kl_gradient(*pair, *scalars, shorter, **blocks)
        torch.testing.assert_close(shorter.double(), wanted, rtol=1e-2, atol=1e-5)
    kl_gradient(*pair, *scalars, student, **blocks)
    torch.testing.assert_close(student.double(), wanted, **tolerance)
