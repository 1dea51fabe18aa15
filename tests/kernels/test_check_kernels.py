"""The kernels that assert values on the device, in Triton's interpreter, where an assertion is Python's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from numerics import offsets
from triton.runtime import interpreter

from fgrl.kernels.checks import check_offsets, check_range


@pytest.fixture(autouse=True)
def asserting_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are compiled with `debug=True`, which the interpreter does not read."""
    options = replace(interpreter.interpreter_builder.options, debug=True)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)


SIZES = (1, 7, 1024, 2500)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_a_mask(size: int, dtype: torch.dtype) -> None:
    mask = (torch.rand(size) < 0.5).to(dtype)
    check_range(mask, None, None, 0, 1, True, "bad")
    mask[size // 2] = 2
    with pytest.raises(Exception, match="bad"):
        check_range(mask, None, None, 0, 1, True, "bad")


@pytest.mark.parametrize("bound", [None, 100])
@pytest.mark.parametrize("value", [-1, 100])
@pytest.mark.parametrize("size", SIZES)
def test_targets(size: int, value: int, bound: int | None) -> None:
    targets, mask = torch.randint(100, (size,)), torch.ones(size, dtype=torch.bool)
    limits = (None, 0, 99) if bound is None else (torch.tensor(bound), 0, 0)
    check_range(targets, None, *limits, False, "bad")
    targets[-1] = value
    mask[-1] = False
    check_range(targets, mask, *limits, False, "bad")
    mask[-1] = True
    with pytest.raises(Exception, match="bad"):
        check_range(targets, mask, *limits, False, "bad")


def test_not_a_number_is_in_no_range() -> None:
    check_range(torch.tensor([0.0, 1.0]), None, None, 0.0, 1.0, False, "bad")
    check_range(torch.tensor(float("inf")), None, None, 0.0, float("inf"), False, "bad")
    with pytest.raises(Exception, match="bad"):
        check_range(torch.tensor([0.0, float("nan")]), None, None, 0.0, 1.0, False, "bad")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 2000])
def test_offsets(count: int, dtype: torch.dtype) -> None:
    good = offsets([1, *[2] * (count - 1)][:count], dtype)
    end = int(good[-1])
    check_offsets(good, end, "bad")
    bad = [good + 1, good[good != 0]] if count else [good + 1]
    if count > 1:
        swapped = good.clone()
        swapped[count // 2] = end + 1
        bad.append(swapped)
    for tensor in bad:
        if tensor.numel():
            with pytest.raises(Exception, match="bad"):
                check_offsets(tensor, end, "bad")
    with pytest.raises(Exception, match="bad"):
        check_offsets(good, end + 1, "bad")
