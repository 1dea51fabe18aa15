"""Every `loss` and every rollout correction of `PPOLossConfig`, against scalar arithmetic and against each other."""

from __future__ import annotations

import re
from typing import Any

import losses
import pytest
import torch
from losses import AGGREGATIONS, DUAL_CLIPPED, IMPORTANCE_LEVELS, POLICY_LOSSES, check_ppo, everything
from losses import draw_ppo_without_ties as draw
from numerics import MASKS, POISONS, SHAPES, gradients, make_mask, offsets, pack, poisoned, unpack

import fgrl
from fgrl.ops import PPOLossConfig

SEQUENCE_LOSSES = ("gspo", "gspo-token", "gmpo")
NEEDS_SEQUENCES = [PPOLossConfig(loss=loss) for loss in SEQUENCE_LOSSES]
NEEDS_SEQUENCES += [PPOLossConfig(importance_level=level) for level in IMPORTANCE_LEVELS[1:]]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_equals_the_oracle(loss: str, shape: tuple[int, int], kind: str) -> None:
    mask = make_mask(kind, shape)
    check_ppo(draw(shape), mask, PPOLossConfig(loss=loss))
    check_ppo(draw(shape), mask, everything(loss, kl_estimator="k3+", aggregation="seq-mean-token-mean"))


@pytest.mark.parametrize("normalizer", [None, 12.5], ids=["local", "global"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_aggregations(loss: str, aggregation: str, normalizer: float | None) -> None:
    for kind in ("none", "holes", "masked-row", "all-masked"):
        config = everything(loss, kl_estimator="k3+", aggregation=aggregation)
        check_ppo(draw((3, 7)), make_mask(kind, (3, 7)), config, normalizer)


@pytest.mark.parametrize("dual_clip", [None, 1.01, 3.0], ids=str)
@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.0, 0.0), (0.1, 0.5), (1.0, 0.0)], ids=str)
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_clips(loss: str, clip: tuple[float, float], dual_clip: float | None) -> None:
    if dual_clip is not None and loss not in DUAL_CLIPPED:
        with pytest.raises(
            ValueError, match=re.escape(f"dual_clip is {dual_clip}; it must be None with loss '{loss}'")
        ):
            PPOLossConfig(loss=loss, dual_clip=dual_clip)
        return
    inputs = draw((8, 9))
    inputs["logprobs"] += torch.randn(8, 1, dtype=torch.float64)  # so that sequences differ from the old ones too
    inputs["advantages"][:4] = inputs["advantages"][:4, :1]
    config = PPOLossConfig(loss=loss, clip_low=clip[0], clip_high=clip[1], dual_clip=dual_clip)
    check_ppo(inputs, make_mask("holes", (8, 9)), config)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_sequences_without_tokens(loss: str, aggregation: str) -> None:
    config = everything(loss, kl_estimator="k3+", aggregation=aggregation, importance_level="sequence")
    for shape in ((0, 0), (3, 0), (0, 5)):
        check_ppo(draw(shape), torch.ones(shape), config)
    for cu_seqlens in ([0], [0, 0], [0, 0, 4, 4, 7, 7]):
        inputs = draw((cu_seqlens[-1],))
        inputs["logprobs"].requires_grad_()
        result = fgrl.ops.ppo_loss(**inputs, cu_seqlens=torch.tensor(cu_seqlens), config=config)
        assert result.loss.isfinite()
        assert result.stats["tokens"] == cu_seqlens[-1]
        result.loss.backward()
        assert inputs["logprobs"].grad is not None
        assert inputs["logprobs"].grad.isfinite().all()


@pytest.mark.parametrize("taus", [(1.0, 1.05), (5.0, 0.3)], ids=str)
def test_temperatures_of_sapo(taus: tuple[float, float]) -> None:
    check_ppo(draw((4, 9)), None, PPOLossConfig(loss="sapo", tau_positive=taus[0], tau_negative=taus[1]))


@pytest.mark.parametrize("bounds", [(None, None), (None, 1.5), (0.7, None), (0.7, 1.5)], ids=str)
@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", IMPORTANCE_LEVELS)
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_rollout_correction(loss: str, level: str, mode: str, bounds: tuple[float | None, float | None]) -> None:
    if mode == "mask" and bounds == (None, None):
        with pytest.raises(ValueError, match="importance_mode is 'mask' without a bound; it must"):
            PPOLossConfig(importance_mode="mask")
        return
    config = PPOLossConfig(
        loss=loss,
        importance_level=level,
        importance_mode=mode,
        importance_floor=bounds[0],
        importance_cap=bounds[1],
        aggregation="seq-mean-token-sum",
    )
    inputs = draw((6, 7))
    check_ppo(inputs, make_mask("holes", (6, 7)), config)
    del inputs["old_logprobs"]
    check_ppo(inputs, make_mask("holes", (6, 7)), config)


@pytest.mark.parametrize("missing", ["entropy", "ref_logprobs", "rollout_logprobs", "old_logprobs"])
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_optional_inputs(loss: str, missing: str) -> None:
    inputs = draw((3, 7))
    del inputs[missing]
    config = PPOLossConfig(loss=loss, importance_level="geometric", importance_cap=1.5)
    check_ppo(inputs, make_mask("holes", (3, 7)), config)


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("kind", ["holes", "masked-row", "all-masked"])
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_nothing_under_the_mask_is_seen_or_differentiated(loss: str, kind: str, poison: float) -> None:
    inputs, mask = draw((3, 7), torch.float32), make_mask(kind, (3, 7))
    for level in IMPORTANCE_LEVELS:
        options = {"mask": mask, "config": everything(loss, importance_level=level)}
        clean = losses.outcome(fgrl.ops.ppo_loss, inputs, **options)
        dirty = losses.outcome(
            fgrl.ops.ppo_loss, {name: poisoned(x, mask, poison) for name, x in inputs.items()}, **options
        )
        for name, tensor in clean.items():
            assert torch.equal(dirty[name], tensor), name
            if kind == "all-masked":
                assert (tensor == 0).all(), name


@pytest.mark.parametrize("lengths", [(7, 1, 4), (0, 5, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_packed_equals_padded(loss: str, lengths: tuple[int, ...]) -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    assert mask is not None
    mask = mask & (torch.arange(7) < torch.tensor(lengths)[:, None])
    for level, aggregation in zip((*IMPORTANCE_LEVELS, "sequence"), AGGREGATIONS, strict=True):
        config = everything(loss, importance_level=level, aggregation=aggregation)
        padded = losses.outcome(fgrl.ops.ppo_loss, inputs, mask=mask, config=config)
        packed = losses.outcome(
            fgrl.ops.ppo_loss,
            {name: pack(tensor, lengths) for name, tensor in inputs.items()},
            mask=pack(mask, lengths),
            cu_seqlens=offsets(lengths),
            config=config,
        )
        for name, tensor in padded.items():
            found = packed[name] if tensor.ndim == 0 else unpack(packed[name], lengths, 7)
            torch.testing.assert_close(found, tensor, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("config", NEEDS_SEQUENCES, ids=lambda config: f"{config.loss} {config.importance_level}")
def test_packed_tokens_without_cu_seqlens_are_refused(config: PPOLossConfig) -> None:
    option = f"loss '{config.loss}'" if config.loss != "clip" else f"importance_level '{config.importance_level}'"
    message = re.escape(f"[5]; for {option} it must be [B, T], or packed [N] with cu_seqlens")
    x = torch.randn(5)
    with pytest.raises(ValueError, match="cu_seqlens is None and logprobs has shape " + message):
        fgrl.ops.ppo_loss(x, x, x, config=config)
    with pytest.raises(ValueError, match="cu_seqlens is None and targets has shape " + message):
        fgrl.ops.linear_ppo_loss(torch.randn(5, 3), torch.randn(7, 3), x.long().abs(), x, x, config=config)


@pytest.mark.parametrize("loss", ["clip", "gspo", "gmpo", "sapo", "reinforce"])  # the others stop gradients on purpose
def test_gradients_in_float64(loss: str) -> None:
    inputs, mask = draw((2, 5)), make_mask("holes", (2, 5))
    constants = {name: tensor for name, tensor in inputs.items() if name not in ("logprobs", "entropy")}
    for aggregation, level in zip(AGGREGATIONS, (*IMPORTANCE_LEVELS, "token"), strict=True):
        config = PPOLossConfig(
            loss=loss, kl_coef=0.4, kl_estimator="k3", importance_level=level, aggregation=aggregation, clip_high=0.01
        )
        assert torch.autograd.gradcheck(
            lambda logprobs, config=config: fgrl.ops.ppo_loss(logprobs, **constants, mask=mask, config=config).loss,
            [inputs["logprobs"].requires_grad_()],
        )


def test_gspo_is_gspo_token_where_a_sequence_has_one_advantage_and_only_there() -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    del inputs["rollout_logprobs"]
    same = inputs | {"advantages": inputs["advantages"][:, :1].expand(3, 7)}
    for tensors, is_same in ((same, True), (inputs, False)):
        one, other = (
            losses.outcome(fgrl.ops.ppo_loss, tensors, mask=mask, config=PPOLossConfig(loss=loss, clip_high=9.0))
            for loss in ("gspo", "gspo-token")
        )
        torch.testing.assert_close(one["loss"], other["loss"])
        assert torch.allclose(one["gradient by logprobs"], other["gradient by logprobs"]) is is_same


@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_on_policy_every_loss_has_the_policy_gradient(loss: str) -> None:
    """With one advantage a sequence; with its own for each token gspo and gmpo give the mean of the sequence."""
    logprobs, advantages = -torch.rand(3, 5), torch.randn(3, 1).expand(3, 5)
    config = PPOLossConfig(loss=loss, tau_positive=1.0, tau_negative=1.0)
    gradient = gradients(
        lambda logprobs: fgrl.ops.ppo_loss(logprobs, None, advantages, config=config).loss, {"logprobs": logprobs}
    )[1]["logprobs"]
    torch.testing.assert_close(gradient, -advantages / 15)


@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_a_sequence_of_far_apart_log_probabilities_stays_finite(loss: str) -> None:
    logprobs = torch.tensor([[0.0, -1.0], [-300.0, -200.0]], requires_grad=True)
    old, advantages = torch.tensor([[-300.0, -200.0], [0.0, -1.0]]), torch.tensor([[-1.0, -1.0], [-1.0, 1.0]])
    config = PPOLossConfig(loss=loss, importance_level="sequence")
    value, stats = fgrl.ops.ppo_loss(logprobs, old, advantages, rollout_logprobs=old - 100, config=config)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logprobs.grad).all()  # type: ignore[arg-type]
    assert all(torch.isfinite(stat) for stat in stats.values())


@pytest.mark.parametrize("name", ["logprobs", "old_logprobs", "advantages", "rollout_logprobs"])
@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_a_nan_at_a_valid_token_is_not_lost(loss: str, name: str) -> None:
    inputs = draw((2, 40), torch.float32)
    inputs[name][0, 33] = float("nan")
    for level in IMPORTANCE_LEVELS:
        config = PPOLossConfig(loss=loss, importance_level=level, importance_cap=2.0, importance_mode="mask")
        result = losses.outcome(fgrl.ops.ppo_loss, inputs, mask=make_mask("full", (2, 40)), config=config)
        matters = loss not in ("reinforce",) or name != "old_logprobs" or level != "token"
        assert torch.isnan(result["loss"]) or not matters
        if loss in ("gspo", "gmpo"):
            assert torch.isnan(result["gradient by logprobs"][0]).any()
        assert torch.isfinite(result["gradient by logprobs"][1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ppo"}, "loss is 'ppo'; it must be one of clip, gspo, gspo-token, gmpo, cispo, sapo, reinforce"),
        ({"tau_positive": 0.0}, "tau_positive is 0.0; it must be a finite number greater than 0"),
        ({"tau_negative": float("nan")}, "tau_negative is nan; it must be a finite number greater than 0"),
        ({"importance_floor": 0}, "importance_floor is 0; it must be a number greater than 0, or None"),
        (
            {"importance_floor": 2.0, "importance_cap": 1.0},
            "importance_floor is 2.0; it must be at most importance_cap 1.0",
        ),
        ({"importance_level": "row"}, "importance_level is 'row'; it must be one of token, sequence, geometric"),
        ({"importance_mode": "drop"}, "importance_mode is 'drop'; it must be one of truncate, mask"),
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PPOLossConfig(**options)
