"""Bad input is a `ValueError` in one sentence: the argument, what it was, what it must be. Nothing is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from calls import LEADERS, SEQUENCE_OPS, B, D, T, V, flattened, good, packed

import fgrl
from fgrl.ops import PPOLossConfig

NAN = float("nan")


INTEGERS = ("targets", "groups", "segment_ids")


def other_shape(name: str) -> torch.Tensor:
    sizes = {"weight": (V, D + 1), "bias": (V + 1,), "norm_weight": (D + 1,), "hidden": (B, T, D + 1)}
    sizes |= {"bootstrap": (B + 1,), "sequence_rewards": (B + 1,), "moments": (4,), "groups": (B + 1,)}
    dtype = torch.long if name in INTEGERS else torch.float32
    return torch.zeros(sizes.get(name, (B, T + 1)), dtype=dtype)


TENSORS = [(op, name) for op in LEADERS for name in good(op)]
FOLLOWERS = [(op, name) for op, name in TENSORS if LEADERS[op] != name]
FLOATS = [(op, name) for op, name in TENSORS if not name.endswith(("mask", "edits")) and name not in INTEGERS]
OPTIONAL = {
    "mask",
    "bootstrap",
    "sequence_rewards",
    "chosen_mask",
    "rejected_mask",
    "bias",
    "norm_weight",
    "rollout_logprobs",
}


def fails(op: str, name: str, **changes: Any) -> str:
    """Call the op with these changes; the error must name the argument, and no input be written. Returns its text."""
    inputs = good(op) | changes
    tensors = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor) and not value.is_meta}
    before = {key: value.clone() for key, value in tensors.items()}
    with pytest.raises(ValueError) as caught:
        getattr(fgrl.ops, op)(**inputs)
    for key, value in before.items():
        assert np.array_equal(value.float().numpy(), inputs[key].float().numpy(), equal_nan=True), f"{key} was written"
    message = str(caught.value)
    assert name in message, message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("op", LEADERS)
def test_the_arguments_used_here_are_good(op: str) -> None:
    getattr(fgrl.ops, op)(**good(op))


@pytest.mark.parametrize(("op", "name"), FOLLOWERS, ids=[".".join(case) for case in FOLLOWERS])
def test_wrong_shape(op: str, name: str) -> None:
    wrong = other_shape(name)
    if op == "edit_preference_loss" and name == "rejected_rewards":
        wrong = torch.zeros(B + 1, T)
        message = fails(op, name, **{name: wrong, "rejected_edits": torch.ones(B + 1, T), "rejected_mask": None})
        assert str(B + 1) in message
        assert str(B) in message
        return
    message = fails(op, name, **{name: wrong})
    assert message.startswith(name)
    assert str(list(wrong.shape)) in message


@pytest.mark.parametrize(("op", "name"), FLOATS, ids=[".".join(case) for case in FLOATS])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
def test_wrong_dtype(dtype: torch.dtype, op: str, name: str) -> None:
    message = fails(op, name, **{name: good(op)[name].to(dtype)})
    assert message.startswith(name)
    assert str(dtype) in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.bool], ids=str)
@pytest.mark.parametrize("op", ["linear_logprobs", "linear_ppo_loss"])
def test_wrong_dtype_of_targets(op: str, dtype: torch.dtype) -> None:
    assert str(dtype) in fails(op, "targets", targets=torch.zeros(B, T, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool], ids=str)
@pytest.mark.parametrize("name", ["groups", "segment_ids"])
def test_wrong_dtype_of_ids(name: str, dtype: torch.dtype) -> None:
    """A bool is no id: where one is passed, it is likely a mask in the wrong place."""
    message = fails("group_advantages", name, **{name: good("group_advantages")[name].to(dtype)})
    assert message.startswith(name)
    assert str(dtype) in message


@pytest.mark.parametrize(("op", "name"), FOLLOWERS, ids=[".".join(case) for case in FOLLOWERS])
def test_wrong_device(op: str, name: str) -> None:
    changes = {name: good(op)[name].to("meta")}
    if name == "rejected_rewards":  # it leads its own side
        changes |= {other: good(op)[other].to("meta") for other in ("rejected_edits", "rejected_mask")}
    message = fails(op, name, **changes)
    assert message.startswith(name)
    assert "meta" in message
    assert "cpu" in message


@pytest.mark.parametrize(("op", "name"), TENSORS, ids=[".".join(case) for case in TENSORS])
def test_no_tensor(op: str, name: str) -> None:
    assert fails(op, name, **{name: good(op)[name].tolist()}).startswith(name)


REQUIRED = [case for case in TENSORS if case[1] not in OPTIONAL]
NONE_IS_MEANT = {
    ("token_advantages", "token_rewards"),
    ("token_advantages", "logprobs"),
    ("token_advantages", "ref_logprobs"),
    ("group_advantages", "rewards"),
    ("group_advantages", "segment_ids"),
    ("ppo_loss", "old_logprobs"),
    ("ppo_loss", "ref_logprobs"),
    ("ppo_loss", "entropy"),
    ("linear_ppo_loss", "old_logprobs"),
    ("linear_ppo_loss", "ref_logprobs"),
}


@pytest.mark.parametrize(
    ("op", "name"),
    [case for case in REQUIRED if case not in NONE_IS_MEANT],
    ids=[".".join(case) for case in REQUIRED if case not in NONE_IS_MEANT],
)
def test_a_required_tensor_is_none(op: str, name: str) -> None:
    assert fails(op, name, **{name: None}).startswith(name)


MASKS = [(op, name) for op, name in TENSORS if name.endswith(("mask", "edits"))]


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, NAN], ids=str)
@pytest.mark.parametrize(("op", "name"), MASKS, ids=[".".join(case) for case in MASKS])
def test_masks_other_than_0_and_1(op: str, name: str, value: float) -> None:
    mask = torch.ones(B, T)
    mask[1, 2] = value
    assert fails(op, name, **{name: mask}).startswith(name)


SCALARS = {
    "gae": [("gamma", bad) for bad in (-0.1, 1.1, NAN, "1", None, True)]
    + [("lam", bad) for bad in (-0.1, 1.1, NAN, None)],
    "token_advantages": [
        *[(name, bad) for name in ("gamma", "lam") for bad in (-0.1, 1.1, NAN, None)],
        *[("kl_coef", bad) for bad in (-0.1, NAN, float("inf"), None)],
        *[("kl_estimator", bad) for bad in ("k4", "K1", "", None, "+")],
        *[("reward_clip", bad) for bad in (0.0, -1.0, NAN, True, "1", (1.0, -1.0), (1.0,), (NAN, 1.0), ["a", "b"])],
        *[("reward_scale", bad) for bad in (NAN, float("inf"), None)],
    ],
    "group_advantages": [
        *[("gamma", bad) for bad in (-0.1, 1.1, NAN, "1", None, True)],
        *[("baseline", bad) for bad in ("rloo", "Mean", "", None)],
        *[("scale", bad) for bad in ("std", True, "", None)],
        *[("min_temperature", bad) for bad in (-0.1, NAN, float("inf"), "0", True)],
    ],
    "edit_preference_loss": [
        *[("reduction", bad) for bad in ("max", None, "")],
        *[("unchanged_weight", bad) for bad in (-0.1, NAN, None)],
        *[("margin", bad) for bad in (NAN, float("inf"), None)],
    ],
    "token_reward_head": [("norm_eps", bad) for bad in (0.0, -1e-6, NAN, None)],
    "value_loss": [
        *[("clip", bad) for bad in (-0.1, NAN, "x")],
        *[("aggregation", bad) for bad in ("mean", None)],
        *[("normalizer", bad) for bad in (-1.0, NAN, "x", True, torch.zeros(2))],
    ],
    "ppo_loss": [("normalizer", bad) for bad in (-1.0, NAN, torch.zeros(2), torch.tensor(-1.0), torch.tensor(NAN))],
    "linear_logprobs": [(name, bad) for name in ("temperature", "softcap") for bad in (0.0, -1.0, NAN, float("inf"))]
    + [("temperature", None)],
    "linear_ppo_loss": [
        *[(name, bad) for name in ("temperature", "softcap") for bad in (0.0, -1.0, NAN)],
        *[("normalizer", bad) for bad in (-1.0, torch.zeros(2))],
    ],
}
SCALAR_CASES = [(op, name, bad) for op, cases in SCALARS.items() for name, bad in cases]


@pytest.mark.parametrize(("op", "name", "bad"), SCALAR_CASES, ids=[f"{o}.{n}={v!r:.14}" for o, n, v in SCALAR_CASES])
def test_options_outside_their_range(op: str, name: str, bad: Any) -> None:
    assert fails(op, name, **{name: bad}).startswith(name)


NUMBERS = {
    "gae": {"gamma": 1, "lam": 0.5},
    "token_advantages": {"gamma": 1, "lam": 0.5, "kl_coef": 0.5, "reward_scale": 3, "reward_clip": 1},
    "group_advantages": {"gamma": 1, "min_temperature": 0.5},
    "edit_preference_loss": {"unchanged_weight": 0.5, "margin": 1},
    "token_reward_head": {"norm_eps": 0.5},
    "value_loss": {"clip": 0.5, "normalizer": 3},
    "ppo_loss": {"normalizer": 3},
    "linear_logprobs": {"temperature": 0.5, "softcap": 3},
    "linear_ppo_loss": {"temperature": 0.5, "softcap": 3, "normalizer": 3},
}
NUMBER_CASES = [(op, name, value) for op, options in NUMBERS.items() for name, value in options.items()]


@pytest.mark.parametrize(("op", "name", "value"), NUMBER_CASES, ids=[f"{o}.{n}" for o, n, _ in NUMBER_CASES])
def test_options_are_numbers_of_any_kind(op: str, name: str, value: float) -> None:
    """A count or a coefficient often comes out of NumPy."""
    inputs = good(op)
    expected = flattened(getattr(fgrl.ops, op)(**inputs, **{name: value}))
    for kind in (np.float16, np.float32, np.float64, *([np.int64] if isinstance(value, int) else [])):
        ours = flattened(getattr(fgrl.ops, op)(**inputs, **{name: kind(value)}))
        for left, right in zip(ours, expected, strict=True):
            assert left.dtype == right.dtype
            assert torch.equal(left, right), kind


@pytest.mark.parametrize("op", ["gae", "token_advantages"])
def test_the_precision_of_an_option_is_not_that_of_the_recursion(op: str) -> None:
    low = np.float16(0.99)
    inputs = good(op)
    rough, exact = (getattr(fgrl.ops, op)(**inputs, gamma=gamma, lam=gamma) for gamma in (low, float(low)))
    assert torch.equal(rough.advantages, exact.advantages)


@pytest.mark.parametrize("op", ["gae", "token_advantages"])
@pytest.mark.parametrize(
    "lam",
    [torch.tensor([0.5, 1.5]), torch.tensor([0.5, NAN]), torch.zeros(3), torch.zeros(2, dtype=torch.long)],
    ids=["above 1", "NaN", "three for two sequences", "int64"],
)
def test_lam_as_a_bad_tensor(op: str, lam: torch.Tensor) -> None:
    assert fails(op, "lam", lam=lam).startswith("lam")


CU_SEQLENS = {
    "does not start at 0": torch.tensor([1, 3, 6], dtype=torch.int32),
    "does not end at N": torch.tensor([0, 3, 5], dtype=torch.int32),
    "ends past N": torch.tensor([0, 3, 7], dtype=torch.int32),
    "decreases": torch.tensor([0, 5, 4, 6], dtype=torch.int32),
    "no offset at all": torch.zeros(0, dtype=torch.int32),
    "two-dimensional": torch.zeros(1, 2, dtype=torch.int32),
    "float": torch.tensor([0.0, 6.0]),
    "int16": torch.tensor([0, 6], dtype=torch.int16),
    "a list": [0, 3, 6],
    "another device": torch.zeros(3, dtype=torch.int32, device="meta"),
}


@pytest.mark.parametrize("bad", CU_SEQLENS.values(), ids=CU_SEQLENS)
@pytest.mark.parametrize("op", SEQUENCE_OPS)
def test_bad_cu_seqlens(op: str, bad: Any) -> None:
    assert fails(op, "cu_seqlens", **packed(op) | {"cu_seqlens": bad}).startswith("cu_seqlens")


@pytest.mark.parametrize("op", SEQUENCE_OPS)
def test_cu_seqlens_with_padded_tensors(op: str) -> None:
    assert "[2, 3]" in fails(op, "cu_seqlens", cu_seqlens=torch.tensor([0, 3, 6]))


@pytest.mark.parametrize("op", ["gae", "token_advantages", "group_advantages"])
def test_packed_without_cu_seqlens(op: str) -> None:
    fails(op, "cu_seqlens", **packed(op))


@pytest.mark.parametrize("aggregation", ["seq-mean-token-sum", "seq-mean-token-mean"])
@pytest.mark.parametrize("op", ["ppo_loss", "value_loss", "linear_ppo_loss"])
def test_sequence_aggregations_of_packed_tokens_need_cu_seqlens(op: str, aggregation: str) -> None:
    option: dict[str, Any] = {"aggregation": aggregation}
    if op != "value_loss":
        option = {"config": PPOLossConfig(**option)}
    assert "cu_seqlens" in fails(op, "cu_seqlens", **packed(op) | option)


@pytest.mark.parametrize("op", ["ppo_loss", "value_loss"])
def test_three_dimensions_are_no_batch_of_tokens(op: str) -> None:
    cubes = {name: torch.ones(2, 3, 4) for name in good(op)}
    with pytest.raises(ValueError, match=rf"{LEADERS[op]} has shape \[2, 3, 4\]"):
        getattr(fgrl.ops, op)(**cubes)


@pytest.mark.parametrize("shape", [(), (4,), (1, 2, 3, 4)], ids=str)
def test_hidden_of_wrong_rank(shape: tuple[int, ...]) -> None:
    for op in ("linear_logprobs", "linear_ppo_loss"):
        assert str(list(shape)) in fails(op, "hidden", hidden=torch.zeros(shape))


@pytest.mark.parametrize("target", [-1, V, -100, 2**40], ids=str)
@pytest.mark.parametrize("op", ["linear_logprobs", "linear_ppo_loss"])
def test_a_target_outside_the_vocabulary(op: str, target: int) -> None:
    targets = torch.zeros(B, T, dtype=torch.long)
    targets[1, 1] = target
    message = fails(op, "targets", targets=targets)
    assert message.startswith("targets")
    assert str(V) in message


@pytest.mark.parametrize(
    ("op", "changes"),
    [
        ("ppo_loss", {"ref_logprobs": None, "config": PPOLossConfig(kl_coef=0.1)}),
        ("linear_ppo_loss", {"ref_logprobs": None, "config": PPOLossConfig(kl_coef=0.1)}),
        ("ppo_loss", {"entropy": None, "config": PPOLossConfig(entropy_coef=0.1)}),
        ("value_loss", {"old_values": None, "clip": 0.2}),
        ("token_advantages", {"ref_logprobs": None, "kl_coef": 0.1}),
        ("group_advantages", {"rewards": None, "token_rewards": None, "segment_ids": None}),
        ("group_advantages", {"mask": None, "token_rewards": None, "segment_ids": None}),
        ("group_advantages", {"token_rewards": None}),
        ("group_advantages", {"token_rewards": None, "segment_ids": None, "min_temperature": 0.1}),
        ("token_advantages", {"logprobs": None, "kl_coef": 0.1}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_an_option_needs_an_input_that_is_missing(op: str, changes: dict[str, Any]) -> None:
    fails(op, next(iter(changes)), **changes)


@pytest.mark.parametrize("op", ["ppo_loss", "linear_ppo_loss"])
def test_a_config_of_another_type(op: str) -> None:
    assert fails(op, "config", config={"clip_low": 0.2}).startswith("config")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("clip_low", -0.1),
        ("clip_low", 1.1),
        ("clip_low", NAN),
        ("clip_high", -0.1),
        ("clip_high", float("inf")),
        ("dual_clip", 1.0),
        ("dual_clip", 0.5),
        ("dual_clip", NAN),
        ("kl_coef", -0.1),
        ("kl_coef", NAN),
        ("kl_estimator", "k4"),
        ("kl_estimator", "k1++"),
        ("entropy_coef", NAN),
        ("importance_cap", 0.0),
        ("importance_cap", NAN),
        ("aggregation", "mean"),
        ("aggregation", None),
    ],
    ids=str,
)
def test_ppo_options_outside_their_range(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*; it must "):
        PPOLossConfig(**{name: bad})


@pytest.mark.parametrize(
    "moments",
    [torch.zeros(3), torch.zeros(2, dtype=torch.float64), [1.0, 2.0, 3.0]],
    ids=["fp32", "two", "a list"],
)
def test_bad_moments(moments: Any) -> None:
    assert fails("whiten", "moments", moments=moments).startswith("moments")


@pytest.mark.parametrize("bad", [torch.zeros(2), torch.zeros(1, 1)], ids=["two", "a matrix"])
def test_a_bias_that_does_not_fit_one_head(bad: torch.Tensor) -> None:
    fails("token_reward_head", "bias", weight=torch.zeros(D), bias=bad)


@pytest.mark.parametrize("op", [op for op in LEADERS if not op.startswith("linear")])
def test_shapes_alone_pass_through_on_the_meta_device(op: str) -> None:
    """No op reads a value: what it returns for tensors without data has the right shape and dtype."""
    inputs = {name: tensor.to("meta") for name, tensor in good(op).items()}
    outputs = getattr(fgrl.ops, op)(**inputs)
    real = getattr(fgrl.ops, op)(**good(op))
    pairs = (
        zip([outputs], [real], strict=True) if isinstance(outputs, torch.Tensor) else zip(outputs, real, strict=True)
    )
    for meta, tensor in pairs:
        if isinstance(meta, dict):
            assert {name: value.shape for name, value in meta.items()} == {n: v.shape for n, v in tensor.items()}
        else:
            assert (meta.shape, meta.dtype, meta.device.type) == (tensor.shape, tensor.dtype, "meta")
