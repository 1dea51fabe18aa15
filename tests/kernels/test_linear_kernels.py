"""The softmax steps of the `linear_*` ops on their kernels: parts of rows, tails, shorter gradients, aliased output."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_as_accurate

triton = pytest.importorskip("triton")

from fgrl.kernels.linear import logit_gradient, logit_statistics  # noqa: E402

# One column; a block and its edges; several blocks, the last one nearly empty.
VOCABULARIES = (1, 7, 31, 32, 33, 65, 200)
BLOCK = 32


def rows(count: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Logits in rows of a buffer that holds NaN where they end."""
    width = -(-vocabulary // 16) * 16
    buffer = torch.full((count, width), float("nan"), dtype=dtype, device=device)
    buffer[:, :vocabulary] = torch.randn(count, vocabulary, dtype=dtype) * 5
    return buffer[:, :vocabulary]


def scaled(logits: torch.Tensor, bias: torch.Tensor | None, softcap: float | None) -> torch.Tensor:
    logits = logits if bias is None else logits + bias.to(logits.dtype)
    return (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("has_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("programs", [1, 4], ids=["one part", "parts"])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_statistics_and_gradient(
    vocabulary: int,
    programs: int,
    has_bias: bool,
    softcap: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    assert_right(vocabulary, has_bias, softcap, dtype, device, {"block": BLOCK, "min_programs": 3 * programs})


@pytest.mark.parametrize("vocabulary", [1000, 2100])
def test_shipped_blocks(vocabulary: int, device: torch.device) -> None:
    """Less than a block, and several."""
    assert_right(vocabulary, True, 4.0, torch.float32, device, {})


def assert_right(
    vocabulary: int,
    has_bias: bool,
    softcap: float | None,
    dtype: torch.dtype,
    device: torch.device,
    split: dict[str, int],
) -> None:
    logits = rows(3, vocabulary, dtype, device)
    bias = torch.randn(vocabulary, device=device).to(torch.bfloat16) if has_bias else None
    if bias is not None and vocabulary > 2:
        bias[1] = float("-inf")
    targets = torch.tensor([vocabulary - 1, 0, -1], device=device)  # the last one's is not in this part of the head
    grads = torch.randn(4, 3, dtype=dtype, device=device)

    parts = logit_statistics(logits, bias, targets, 0.7, softcap, **split)
    assert parts.shape[1] == 1 or split.get("min_programs", 4) > 3
    blocks = {"block": split["block"]} if split else {}
    exact = scaled(logits.double(), bias, softcap)
    plain = scaled(logits, bias, softcap)
    grads[0] = plain.amax(1)
    row_max, scale = parts[0].amax(0), (parts[0] - parts[0].amax(0)).exp()
    torch.testing.assert_close(row_max.double(), exact.amax(1), rtol=1e-6, atol=1e-6)
    total = (parts[1] * scale).sum(0)
    moment = ((parts[2] + parts[1] * (parts[0] - row_max)) * scale).sum(0)
    for z, found in ((plain, []), (exact, [])):
        x = z - z.amax(1, keepdim=True)
        found += [x.exp().sum(1), torch.where(x.exp() == 0, 0, x.exp() * x).sum(1)]
        if z is plain:
            baseline = found
    assert_as_accurate(total, baseline[0], found[0], message="total")
    assert_as_accurate(moment, baseline[1], found[1], message="moment")
    expected = torch.stack([plain[0, vocabulary - 1], plain[1, 0], torch.zeros_like(plain[0, 0])])
    torch.testing.assert_close(parts[3].sum(0), expected, rtol=1e-5, atol=1e-5)

    wanted = torch.empty_like(exact)
    for row, (z, (shift, constant, linear_, target)) in enumerate(zip(exact, grads.double().T, strict=True)):
        x = z - shift
        wanted[row] = torch.where(x.exp() == 0, 0, x.exp() * (constant + linear_ * x))
        if targets[row] >= 0:
            wanted[row, targets[row]] += target
    if softcap is not None:
        wanted *= 1 - (exact * 0.7 / softcap).square()
    if dtype == torch.float32:
        shorter = rows(3, vocabulary, torch.bfloat16, device)
        logit_gradient(logits, bias, targets, grads, 0.7, softcap, shorter, **blocks)
        torch.testing.assert_close(shorter.double(), wanted, rtol=1e-2, atol=1e-5)
    logit_gradient(logits, bias, targets, grads, 0.7, softcap, logits, **blocks)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(logits.double(), wanted, rtol=tolerance, atol=tolerance)
