"""The losses in C++: mask dtypes, layouts, threads, and many short sequences in one block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import losses
import pytest
import torch
from numerics import make_mask, offsets, pack

import fgrl
from fgrl import backend
from fgrl.ops import PPOLossConfig

pytestmark = [
    pytest.mark.skipif(
        backend.resolve("ppo_loss", torch.device("cpu")) != "cpp", reason="the C++ extension does not run here"
    ),
    pytest.mark.usefixtures("each_cpu_capability"),
]


def ppo(inputs: dict[str, torch.Tensor], mask: torch.Tensor | None, aggregation: Any, **options: Any) -> Any:
    config = PPOLossConfig(kl_coef=0.1, entropy_coef=0.1, dual_clip=2.0, aggregation=aggregation)
    return losses.outcome(fgrl.ops.ppo_loss, inputs, mask=mask, config=config, **options)


def value(inputs: dict[str, torch.Tensor], mask: torch.Tensor | None, aggregation: Any, **options: Any) -> Any:
    return losses.outcome(fgrl.ops.value_loss, inputs, mask=mask, aggregation=aggregation, **options)


CASES = [
    pytest.param(losses.draw_ppo, ppo, id="ppo_loss"),
    pytest.param(losses.draw_value, value, id="value_loss"),
]
Draw = Callable[..., dict[str, torch.Tensor]]
Run = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.int64, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize(("draw", "run"), CASES)
def test_masks_of_every_dtype(draw: Draw, run: Run, dtype: torch.dtype) -> None:
    inputs, mask = draw((3, 5000)), make_mask("holes", (3, 5000))
    assert mask is not None
    for aggregation in ("token-mean", "seq-mean-token-mean"):
        expected = run(inputs, mask, aggregation)
        for name, tensor in run(inputs, mask.to(dtype), aggregation).items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(("draw", "run"), CASES)
def test_strided_inputs(draw: Draw, run: Run) -> None:
    inputs, mask = draw((5, 300)), make_mask("holes", (5, 300))
    assert mask is not None
    strided = {name: tensor.t().contiguous().t() for name, tensor in inputs.items()}
    expected = run(inputs, mask, "seq-mean-token-mean")
    for name, tensor in run(strided, mask.t().contiguous().t(), "seq-mean-token-mean").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
@pytest.mark.parametrize(("draw", "run"), CASES)
def test_same_bits_on_any_number_of_threads(threads: None, draw: Draw, run: Run, aggregation: str) -> None:
    inputs, mask = draw((64, 1100)), make_mask("holes", (64, 1100))
    torch.set_num_threads(1)
    expected = run(inputs, mask, aggregation)
    for count in (2, 4):
        torch.set_num_threads(count)
        for name, tensor in run(inputs, mask, aggregation).items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
@pytest.mark.parametrize(("draw", "run"), CASES)
def test_packed_equals_padded(draw: Draw, run: Run, aggregation: str) -> None:
    """Over several blocks, with sequences shorter than a vector, longer than a block, and empty ones."""
    batch, width = 40, 5000
    lengths = [0, 5000, 0, 0, 4100, *((7 * i) % 23 for i in range(batch - 6)), 0]
    inputs, mask = draw((batch, width)), make_mask("holes", (batch, width))
    assert mask is not None
    inside = torch.arange(width) < torch.tensor(lengths)[:, None]
    expected = run(inputs, mask & inside, aggregation)
    packed = run(
        {name: pack(tensor, lengths) for name, tensor in inputs.items()},
        pack(mask, lengths),
        aggregation,
        cu_seqlens=offsets(lengths),
    )
    for name, tensor in expected.items():
        wanted = pack(tensor, lengths) if tensor.ndim else tensor
        torch.testing.assert_close(packed[name], wanted, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
