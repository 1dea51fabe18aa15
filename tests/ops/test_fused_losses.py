"""`ppo_loss`, `value_loss` and `edit_preference_loss` as they run here, in C++ or on kernels, against the reference."""

from __future__ import annotations

from typing import Any

import losses
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import MASKS, make_mask

import fgrl
from fgrl import backend
from fgrl.extension import interprets_kernels
from fgrl.ops import PPOLossConfig

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(backend.resolve("ppo_loss", CPU) == "reference", reason="nothing fused runs here")

# Around the widths of vectors (4, 8, 16 lanes), of the runs added in one go, and of a block of the interpreted kernels.
LENGTHS = (0, 1, 2, 7, 15, 16, 17, 33, 63, 64, 65, 255, 257)
EXAMPLES = settings(max_examples=60 if interprets_kernels() else 400, deadline=None, derandomize=True)
NORMALIZERS = [None, 12.5, 7, torch.tensor(9), torch.tensor([4.0]), torch.tensor(0.0)]


@EXAMPLES
@given(
    layout=losses.layouts(LENGTHS),
    dtype=st.sampled_from(losses.DTYPES),
    config=losses.CONFIGS,
    absent=st.sets(st.sampled_from(["old_logprobs", "ref_logprobs", "entropy", "rollout_logprobs"])),
    normalizer=st.sampled_from(NORMALIZERS),
    poison=st.sampled_from(["none", "nan", "inf"]),
)
def test_ppo_loss(
    layout: Any, dtype: torch.dtype, config: PPOLossConfig, absent: set[str], normalizer: Any, poison: str
) -> None:
    shape, mask, cu_seqlens, seed = layout
    torch.manual_seed(seed)
    inputs: dict[str, Any] = losses.draw_ppo(shape, dtype)
    needed = {"ref_logprobs"} if config.kl_coef else set()
    needed |= {"entropy"} if config.entropy_coef else set()
    inputs |= dict.fromkeys(absent - needed)
    if poison != "none":
        inputs = dict(losses.spoil(inputs, mask))[poison]
    losses.assert_right("ppo_loss", inputs, CPU, mask=mask, cu_seqlens=cu_seqlens, normalizer=normalizer, config=config)


@EXAMPLES
@given(
    layout=losses.layouts(LENGTHS),
    dtype=st.sampled_from(losses.DTYPES),
    clip=st.sampled_from([None, 0.2, 3.0]),
    has_old=st.booleans(),
    aggregation=st.sampled_from(losses.AGGREGATIONS),
    normalizer=st.sampled_from(NORMALIZERS),
    poison=st.sampled_from(["none", "nan", "inf"]),
)
def test_value_loss(
    layout: Any, dtype: torch.dtype, clip: float | None, has_old: bool, aggregation: Any, normalizer: Any, poison: str
) -> None:
    shape, mask, cu_seqlens, seed = layout
    torch.manual_seed(seed)
    inputs: dict[str, Any] = losses.draw_value(shape, dtype)
    if clip is None and not has_old:
        inputs["old_values"] = None
    if poison != "none":
        inputs = dict(losses.spoil(inputs, mask))[poison]
    options = {"mask": mask, "cu_seqlens": cu_seqlens, "normalizer": normalizer, "aggregation": aggregation}
    losses.assert_right("value_loss", inputs, CPU, clip=clip, **options)


# Where a derivative has two sides: ratio 1, on a bound, at the clamp of the log-ratio and beyond it; A = 0; logp = ref.
GAPS = [0.0, 0.2, -0.2, 5.0, 20.0, -20.0, 20.5, -20.5]


@pytest.mark.parametrize("estimator", losses.ESTIMATORS)
@pytest.mark.parametrize("rollout", [False, True], ids=["", "rollout"])
def test_ppo_loss_has_the_gradient_of_the_reference_at_every_tie(rollout: bool, estimator: str) -> None:
    gap, advantage, ref_gap = torch.meshgrid(
        torch.tensor(GAPS, dtype=torch.float64),
        torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64),
        torch.tensor([-2.0, 0.0, 1e-9, 2.0], dtype=torch.float64),
        indexing="ij",
    )
    inputs: dict[str, Any] = {
        "logprobs": gap.flatten(),
        "old_logprobs": torch.zeros(gap.numel(), dtype=torch.float64),
        "advantages": advantage.flatten(),
        "ref_logprobs": (gap - ref_gap).flatten(),
        "rollout_logprobs": torch.full((gap.numel(),), -20.0, dtype=torch.float64) if rollout else None,
    }
    low, high = (abs(float(torch.tensor(bound, dtype=torch.float64).exp()) - 1) for bound in (-0.2, 0.2))
    for dual_clip in (None, float(torch.tensor(5.0, dtype=torch.float64).exp())):
        config = PPOLossConfig(
            clip_low=low, clip_high=high, dual_clip=dual_clip, kl_coef=0.5, kl_estimator=estimator, importance_cap=3.0
        )
        ours = losses.outcome(fgrl.ops.ppo_loss, inputs, config=config)
        with fgrl.use_backend("reference"):
            expected = losses.outcome(fgrl.ops.ppo_loss, inputs, config=config)
        for name, tensor in expected.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-13, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["logprobs", "old_logprobs", "advantages", "ref_logprobs", "rollout_logprobs"])
@pytest.mark.parametrize("place", [0, 16, 300])
def test_a_nan_at_a_valid_token_is_not_lost(place: int, name: str) -> None:
    inputs = losses.draw_ppo((1, 301))
    inputs[name][0, place] = float("nan")
    config = PPOLossConfig(kl_coef=0.1, dual_clip=2.0, importance_cap=2.0)
    loss, stats = fgrl.ops.ppo_loss(**inputs, mask=make_mask("full", (1, 301)), config=config)
    assert torch.isnan(loss)
    if name in ("logprobs", "old_logprobs"):
        assert torch.isnan(stats["ratio_max"])
        assert torch.isnan(stats["approx_kl"])


def test_without_gradients_none_are_computed() -> None:
    inputs = losses.draw_ppo((2, 5))
    arguments = (*list(inputs.values())[:3], None, None, inputs["entropy"], None, None, None, 0.0, 0)
    arguments += (0.2, 0.2, float("inf"), 0.0, 2, 0.1, float("inf"), 0, 1.0, 1.05, 0.0, 0, False)
    for wanted in ((True, False), (False, True), (False, False)):
        *_, logprobs_grad, entropy_grad = torch.ops.fgrl.ppo_loss(*arguments, *wanted)
        assert [gradient.numel() for gradient in (logprobs_grad, entropy_grad)] == [10 * flag for flag in wanted]
    with torch.no_grad():
        assert not fgrl.ops.ppo_loss(**{**inputs, "logprobs": inputs["logprobs"].requires_grad_()}).loss.requires_grad
    constant = {**inputs, "logprobs": inputs["logprobs"].detach(), "advantages": inputs["advantages"].requires_grad_()}
    assert not fgrl.ops.ppo_loss(**constant).loss.requires_grad


@EXAMPLES
@given(
    widths=st.tuples(st.sampled_from(LENGTHS), st.sampled_from(LENGTHS)),
    pairs=st.sampled_from([0, 1, 3]),
    kinds=st.tuples(st.sampled_from(MASKS), st.sampled_from(MASKS)),
    dtype=st.sampled_from(losses.DTYPES),
    reduction=st.sampled_from(["sum", "mean"]),
    unchanged_weight=st.sampled_from([0.0, 0.3]),
    margin=st.sampled_from([0.0, 0.7, -1.0]),
    edit_rate=st.sampled_from([0.0, 0.3, 1.0]),
    poison=st.sampled_from(["none", "nan", "inf"]),
    seed=st.integers(0, 10**6),
)
def test_edit_preference_loss(
    widths: tuple[int, int],
    pairs: int,
    kinds: tuple[str, str],
    dtype: torch.dtype,
    edit_rate: float,
    poison: str,
    seed: int,
    **options: Any,
) -> None:
    torch.manual_seed(seed)
    inputs: dict[str, Any] = {}
    for side, width, kind in zip(("chosen", "rejected"), widths, kinds, strict=True):
        mask = make_mask(kind, (pairs, width)) if pairs and width else None
        rewards = {f"{side}_rewards": torch.randn(pairs, width).to(dtype) / 4}
        if poison != "none":
            rewards = dict(losses.spoil(rewards, mask))[poison]
        options |= {f"{side}_mask": mask, f"{side}_edits": torch.rand(pairs, width) < edit_rate}
        inputs |= rewards
    losses.assert_right("edit_preference_loss", inputs, CPU, **options)


@pytest.mark.parametrize("level", ["sequence", "geometric"])
@pytest.mark.parametrize("shape", [(3, 17), (4, 300)], ids=str)
def test_importance_of_sequences_is_as_accurate(shape: tuple[int, int], level: str) -> None:
    config = PPOLossConfig(importance_cap=2.0, importance_level=level)  # type: ignore[arg-type]
    inputs = losses.draw_ppo(shape)
    losses.assert_right("ppo_loss", inputs, torch.device("cpu"), config=config, mask=make_mask("holes", shape))
