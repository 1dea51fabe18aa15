"""The losses that compute their own gradients: inputs for every option, and what makes a result right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import oracles
import torch
from hypothesis import strategies as st
from numerics import MASKS, POISONS, assert_as_accurate, assert_equals_oracle, leaf, make_mask, poisoned
from torch import Tensor

import fgrl
from fgrl.ops import PPOLossConfig
from fgrl.ops.ppo_loss import STATS

AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean")
ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k2+", "k3+", "abs+")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DIFFERENTIABLE = ("logprobs", "entropy", "values", "chosen_rewards", "rejected_rewards")

EVERYTHING: dict[str, Any] = {
    "clip_low": 0.1,
    "clip_high": 0.3,
    "dual_clip": 1.5,
    "kl_coef": 0.3,
    "kl_estimator": "k3",
    "entropy_coef": 0.05,
    "importance_cap": 1.2,
}
"""Options of `PPOLossConfig` with every part of the loss."""

POLICY_LOSSES = ("clip", "gspo", "gspo-token", "gmpo", "cispo", "sapo", "reinforce")
DUAL_CLIPPED = POLICY_LOSSES[:4]
IMPORTANCE_LEVELS = ("token", "sequence", "geometric")


def everything(loss: str, **options: Any) -> PPOLossConfig:
    """`EVERYTHING` as far as `loss` has it."""
    dual_clip = EVERYTHING["dual_clip"] if loss in DUAL_CLIPPED else None
    return PPOLossConfig(**{**EVERYTHING, "loss": loss, "dual_clip": dual_clip, **options})


@st.composite
def _configs(draw: st.DrawFn) -> PPOLossConfig:
    loss = draw(st.sampled_from(POLICY_LOSSES))
    cap, floor = draw(st.sampled_from([(None, None), (0.8, None), (2.0, None), (2.0, 0.7), (None, 0.7)]))
    modes = ["truncate"] if (cap, floor) == (None, None) else ["truncate", "mask"]
    return PPOLossConfig(
        loss=loss,
        clip_low=draw(st.sampled_from([0.0, 0.2, 1.0])),
        clip_high=draw(st.sampled_from([0.0, 0.28, 10.0])),
        dual_clip=draw(st.sampled_from([None, 1.01, 3.0])) if loss in DUAL_CLIPPED else None,
        tau_positive=draw(st.sampled_from([1.0, 3.0])),
        tau_negative=draw(st.sampled_from([1.05, 0.5])),
        kl_coef=draw(st.sampled_from([0.0, 0.7])),
        kl_estimator=draw(st.sampled_from(ESTIMATORS)),
        entropy_coef=draw(st.sampled_from([0.0, 0.3, -0.1])),
        importance_cap=cap,
        importance_floor=floor,
        importance_level=draw(st.sampled_from(IMPORTANCE_LEVELS)),
        importance_mode=draw(st.sampled_from(modes)),
        aggregation=draw(st.sampled_from(AGGREGATIONS)),
    )


CONFIGS = _configs()


def draw_ppo(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Log-probabilities apart enough that every branch of the clipping is taken, and some not apart at all."""
    logprobs = -torch.rand(shape) * 3

    def near(scale: float) -> Tensor:
        return logprobs + scale * torch.randn(shape) * (torch.rand(shape) < 0.8)

    inputs = {
        "logprobs": logprobs,
        "old_logprobs": near(0.4),
        "advantages": torch.randn(shape) * (torch.rand(shape) < 0.9),
        "ref_logprobs": near(1.0),
        "entropy": torch.rand(shape) * 2,
        "rollout_logprobs": near(0.4),
    }
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


def draw_ppo_without_ties(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The same without equal log-probabilities, so that every derivative has one side."""
    logprobs = -torch.rand(shape, dtype=dtype) * 3
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + torch.randn(shape, dtype=dtype) * 0.5,
        "advantages": torch.randn(shape, dtype=dtype),
        "ref_logprobs": logprobs + torch.randn(shape, dtype=dtype) * 0.5,
        "entropy": torch.rand(shape, dtype=dtype) * 2,
        "rollout_logprobs": logprobs + torch.randn(shape, dtype=dtype) * 0.5,
    }


def draw_value(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Values on either side of the interval around the old ones, and of the returns."""
    values = torch.randn(shape)
    inputs = {
        "values": values,
        "old_values": values + 0.4 * torch.randn(shape),
        "returns": values + torch.randn(shape),
    }
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


def oracle(
    inputs: Mapping[str, Tensor],
    mask: Tensor | None,
    config: PPOLossConfig,
    normalizer: float | None = None,
    sequences: Any = None,
) -> dict[str, Any]:
    """`oracles.ppo_loss` of these inputs."""
    return oracles.ppo_loss(
        *(oracles.flat(inputs.get(name)) for name in ("logprobs", "old_logprobs", "advantages")),
        sequences or oracles.sequences_of(inputs["logprobs"].shape, mask),
        *(oracles.flat(inputs.get(name)) for name in ("ref_logprobs", "entropy", "rollout_logprobs")),
        normalizer=normalizer,
        **vars(config),
    )


def check_ppo(
    inputs: Mapping[str, Tensor], mask: Tensor | None, config: PPOLossConfig, normalizer: float | None = None
) -> None:
    """Loss, both gradients and all statistics of `ppo_loss` against the oracle."""
    inputs = {name: tensor.clone() for name, tensor in inputs.items()}
    logprobs = inputs["logprobs"].requires_grad_()
    entropy = inputs["entropy"].requires_grad_() if "entropy" in inputs else None
    result = fgrl.ops.ppo_loss(**({"old_logprobs": None} | inputs), mask=mask, normalizer=normalizer, config=config)
    result.loss.backward()
    expected = oracle(inputs, mask, config, normalizer)
    assert_equals_oracle(result.loss, expected["loss"], "loss")
    assert_equals_oracle(logprobs.grad, expected["logprobs_gradient"], "gradient by logprobs")
    if entropy is not None and entropy.grad is not None:
        assert_equals_oracle(entropy.grad, expected["entropy_gradient"], "gradient by entropy")
    assert tuple(result.stats) == STATS
    for name, value in result.stats.items():
        assert_equals_oracle(value, expected["stats"][name], name)
        assert value.shape == ()
        assert not value.requires_grad


def outcome(op: Any, inputs: Mapping[str, Tensor | None], **options: Any) -> dict[str, Tensor]:
    """What a loss returns and the gradients of three times it, by name."""
    leaves = {name: leaf(tensor) for name, tensor in inputs.items() if tensor is not None and name in DIFFERENTIABLE}
    result = op(**{**inputs, **leaves}, **options)
    (3 * result.loss).backward()
    rest = result.stats if hasattr(result, "stats") else {"margins": result.margins}
    gradients = {f"gradient by {name}": tensor.grad for name, tensor in leaves.items() if tensor.grad is not None}
    return {"loss": result.loss.detach(), **rest, **gradients}


def assert_right(name: str, inputs: Mapping[str, Tensor | None], device: torch.device, **options: Any) -> None:
    """The loss, every statistic and every gradient are as accurate as PyTorch's in the same dtype."""

    def on(tensor: Any) -> Any:
        return tensor.to(device) if isinstance(tensor, Tensor) else tensor

    def wide(tensor: Tensor | None) -> Tensor | None:
        return tensor.double() if isinstance(tensor, Tensor) and tensor.is_floating_point() else tensor

    ours = outcome(
        getattr(fgrl.ops, name), {k: on(v) for k, v in inputs.items()}, **{k: on(v) for k, v in options.items()}
    )
    with fgrl.use_backend("reference"):
        plain = outcome(getattr(fgrl.ops, name), inputs, **options)
        exact = outcome(getattr(fgrl.ops, name), {k: wide(v) for k, v in inputs.items()}, **options)
    assert ours.keys() == plain.keys()
    mask = options.get("mask")
    for key, baseline in plain.items():
        found = ours[key].cpu()
        assert found.dtype == baseline.dtype, key
        assert_as_accurate(found, baseline, exact[key], message=key)
        if mask is not None and key in ("gradient by logprobs", "gradient by entropy", "gradient by values"):
            assert (found[mask == 0] == 0).all(), key


@st.composite
def layouts(draw: st.DrawFn, lengths: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor | None, Tensor | None, int]:
    """A shape, a mask, offsets of sequences or None, and a seed: padded, or packed with empty sequences among them."""
    seed = draw(st.integers(0, 10**6))
    torch.manual_seed(seed)
    batch, length = draw(st.sampled_from([0, 1, 3])), draw(st.sampled_from(lengths))
    kind = draw(st.sampled_from(MASKS))
    mask = make_mask(kind, (batch, length)) if batch and length else None
    if not draw(st.booleans()):
        return (batch, length), mask, None, seed
    size = batch * length
    bounds = sorted(draw(st.lists(st.integers(0, size), max_size=4)))
    return (size,), None if mask is None else mask.reshape(-1), torch.tensor([0, *bounds, size]), seed


def spoil(inputs: Mapping[str, Tensor | None], mask: Tensor | None) -> Iterator[tuple[str, dict[str, Tensor | None]]]:
    """The inputs with each kind of poison wherever the mask is false."""
    for name, value in POISONS.items():
        yield name, {k: None if v is None else poisoned(v, mask, value) for k, v in inputs.items()}
