"""The kernels of `ppo_loss`, `value_loss` and `edit_preference_loss`: edges of blocks, long and short sequences."""

from __future__ import annotations

from typing import Any

import losses
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numerics import make_mask, offsets

import fgrl
from fgrl.ops import PPOLossConfig

BLOCK = 64
LOSSES = ("ppo_loss.ppo_loss", "value_loss.value_loss", "edit_preference_loss.edit_preference_loss")
# One block, a whole number of them, and one token more and fewer.
SIZES = {"block - 1": BLOCK - 1, "block": BLOCK, "block + 1": BLOCK + 1, "8 blocks": 8 * BLOCK}

pytestmark = pytest.mark.usefixtures("on_triton")


@pytest.fixture(autouse=True)
def small_blocks(launch_with: Any, request: Any) -> None:
    if not request.node.name.startswith("test_shipped"):
        launch_with(*LOSSES, block=BLOCK)


@pytest.fixture
def few_programs(launch_with: Any) -> None:
    """Each program goes over many blocks, as on a GPU it does with millions of tokens."""
    launch_with(*LOSSES[:2], max_programs=8)


def check(name: str, shape: tuple[int, ...], device: torch.device, aggregation: Any, **options: Any) -> None:
    if name == "ppo_loss":
        config = PPOLossConfig(**losses.EVERYTHING, aggregation=aggregation)
        losses.assert_right(name, losses.draw_ppo(shape), device, config=config, **options)
    else:
        losses.assert_right(name, losses.draw_value(shape), device, aggregation=aggregation, **options)


@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", ["ppo_loss", "value_loss"])
def test_edges_of_blocks(name: str, size: int, aggregation: str, device: torch.device) -> None:
    shape = (6, size)  # rows enough that PyTorch's error in the sum is not 0 by luck
    check(name, shape, device, aggregation, mask=make_mask("holes", shape))


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("shape", [(2, 20 * BLOCK + 3), (300, 5)], ids=["long rows", "short rows"])
@pytest.mark.parametrize("name", ["ppo_loss", "value_loss"])
def test_many_blocks_a_program(
    few_programs: None, name: str, shape: tuple[int, int], aggregation: str, device: torch.device
) -> None:
    check(name, shape, device, aggregation, mask=make_mask("holes", shape))


@pytest.mark.parametrize("aggregation", ["seq-mean-token-sum", "seq-mean-token-mean"])
@pytest.mark.parametrize("name", ["ppo_loss", "value_loss"])
def test_sequences_of_every_length_in_and_across_blocks(name: str, aggregation: str, device: torch.device) -> None:
    lengths = [0, 3, BLOCK - 3, 0, 0, BLOCK, 1, 2 * BLOCK + 7, *[2] * 40, 5, 0]
    size = sum(lengths)
    mask = torch.rand(size) < 0.7
    mask[BLOCK : 2 * BLOCK] = False
    check(name, (size,), device, aggregation, mask=mask, cu_seqlens=offsets(lengths, torch.int64))


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("name", ["ppo_loss", "value_loss"])
def test_shipped_blocks(name: str, aggregation: str, device: torch.device) -> None:
    check(name, (3, 1000), device, aggregation, mask=make_mask("holes", (3, 1000)))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss", losses.POLICY_LOSSES)
def test_policy_losses_with_sequences_of_every_length(loss: str, level: str, device: torch.device) -> None:
    lengths = [0, 3, BLOCK - 3, 0, BLOCK, 1, 2 * BLOCK + 7, *[2] * 10, 5, 0]
    size = sum(lengths)
    mask = torch.rand(size) < 0.7
    mask[BLOCK : 2 * BLOCK] = False
    inputs = dict(losses.spoil(losses.draw_ppo((size,)), mask))["nan"]
    config = losses.everything(loss, importance_level=level, kl_estimator="k3+", aggregation="token-mean")
    losses.assert_right("ppo_loss", inputs, device, mask=mask, cu_seqlens=offsets(lengths), config=config)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=losses.layouts((1, 7, 65)),
    dtype=st.sampled_from(losses.DTYPES),
    config=losses.CONFIGS,
    normalizer=st.sampled_from([None, 12.5, torch.tensor(9), torch.tensor(0.0)]),
    poison=st.sampled_from(["nan", "inf"]),
)
def test_every_option_of_ppo_loss(
    layout: Any, dtype: torch.dtype, config: PPOLossConfig, normalizer: Any, poison: str, device: torch.device
) -> None:
    shape, mask, cu_seqlens, seed = layout
    torch.manual_seed(seed)
    inputs = dict(losses.spoil(losses.draw_ppo(shape, dtype), mask))[poison]
    options = {"mask": mask, "cu_seqlens": cu_seqlens, "normalizer": normalizer, "config": config}
    losses.assert_right("ppo_loss", inputs, device, **options)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("widths", [(1, 65), (64, 300), (0, 7)], ids=str)
def test_edit_preference_loss(widths: tuple[int, int], reduction: str, device: torch.device) -> None:
    assert_right_preference(widths, reduction, device)


def test_shipped_blocks_of_edit_preference_loss(device: torch.device) -> None:
    assert_right_preference((300, 1100), "mean", device)


def assert_right_preference(widths: tuple[int, int], reduction: str, device: torch.device) -> None:
    inputs = {
        f"{side}_rewards": torch.randn(3, width) / 4 for side, width in zip(("chosen", "rejected"), widths, strict=True)
    }
    options: dict[str, Any] = {
        f"{side}_edits": torch.rand(3, width) < 0.4 for side, width in zip(("chosen", "rejected"), widths, strict=True)
    }
    options |= {"rejected_mask": torch.rand(3, widths[1]) < 0.7, "unchanged_weight": 0.2, "margin": 0.3}
    losses.assert_right("edit_preference_loss", inputs, device, reduction=reduction, **options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float32], ids=str)
def test_same_bits_twice_with_masks_of_every_dtype_and_strided_inputs(dtype: torch.dtype, device: torch.device) -> None:
    inputs = {name: tensor.to(device) for name, tensor in losses.draw_ppo((5, 70)).items()}
    mask = make_mask("holes", (5, 70))
    assert mask is not None
    config = PPOLossConfig(**losses.EVERYTHING, aggregation="seq-mean-token-mean")
    expected = losses.outcome(fgrl.ops.ppo_loss, inputs, mask=mask.to(device), config=config)
    strided = {name: tensor.t().contiguous().t() for name, tensor in inputs.items()}
    again = losses.outcome(fgrl.ops.ppo_loss, strided, mask=mask.to(device, dtype).t().contiguous().t(), config=config)
    for name, tensor in expected.items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize("shape", [(70,), (5, 14)], ids=str)
@pytest.mark.parametrize("name", ["ppo_loss", "value_loss"])
def test_inputs_that_flatten_without_a_copy_and_stay_strided(
    name: str, shape: tuple[int, ...], device: torch.device
) -> None:
    """Such as one of the two outputs of a value head, or a number expanded to all tokens."""
    op = getattr(fgrl.ops, name)
    inputs = losses.draw_ppo(shape) if name == "ppo_loss" else losses.draw_value(shape)
    inputs = {key: tensor.to(device) for key, tensor in inputs.items()}
    for key, tensor in inputs.items():
        pair = torch.stack([tensor, torch.full_like(tensor, float("nan"))], -1)
        for strided in (pair[..., 0], tensor.new_tensor(-0.5).expand(shape)):
            (loss, stats), expected = op(**{**inputs, key: strided}), op(**{**inputs, key: strided.contiguous()})
            assert torch.equal(loss, expected.loss), key
            assert stats == expected.stats, key


@pytest.mark.parametrize("name", ["logprobs", "old_logprobs"])
def test_a_nan_at_a_valid_token_reaches_the_max_ratio(name: str, device: torch.device) -> None:
    inputs = {key: tensor.to(device) for key, tensor in losses.draw_ppo((1, 3 * BLOCK)).items()}
    inputs[name][0, BLOCK + 5] = float("nan")
    loss, stats = fgrl.ops.ppo_loss(**inputs)
    assert torch.isnan(loss)
    assert torch.isnan(stats["ratio_max"])


def test_a_value_mean_near_zero_is_as_exact_as_its_values(device: torch.device) -> None:
    """Values of 100 on average that cancel: a sum in fp32 would lose the digits of the mean that is left."""
    values = torch.randn(1, 700) * 100
    values = torch.cat([values, 1e-3 - values.flip(1)], 1).to(device)
    stats = fgrl.ops.value_loss(values, None, values + 1, clip=None).stats
    expected = values.double().mean()
    torch.testing.assert_close(stats["value_mean"].double(), expected, rtol=1e-6, atol=0)


def test_a_kl_near_zero_is_as_exact_as_its_terms(device: torch.device) -> None:
    """Log-ratios that cancel, as of a policy that has hardly moved."""
    old = torch.randn(1, 700)
    old = torch.cat([old, 1e-4 - old.flip(1)], 1).to(device)
    logprobs = torch.zeros_like(old)
    stats = fgrl.ops.ppo_loss(logprobs, old, logprobs, ref_logprobs=old, config=PPOLossConfig(kl_estimator="k1")).stats
    torch.testing.assert_close(stats["approx_kl"].double(), old.double().mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(stats["kl"].double(), -old.double().mean(), rtol=1e-6, atol=0)
