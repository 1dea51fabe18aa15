"""`linear_ppo_loss` is `linear_logprobs` and `ppo_loss` in one: the same numbers, and the same gradients."""

from __future__ import annotations

from typing import Any

import losses
import oracles
import pytest
import torch
from losses import AGGREGATIONS
from numerics import (
    MASKS,
    POISONS,
    assert_as_accurate,
    assert_equals_oracle,
    gradients,
    make_mask,
    offsets,
    pack,
    poisoned,
)

import fgrl
from fgrl.ops import PPOLossConfig

TRAINED = ("hidden", "weight", "bias")
PER_TOKEN = ("old_logprobs", "advantages", "ref_logprobs", "rollout_logprobs")
EVERYTHING = PPOLossConfig(**losses.EVERYTHING, aggregation="seq-mean-token-mean")


def draw(
    shape: tuple[int, int], width: int = 5, vocabulary: int = 11, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    hidden = torch.randn(*shape, width, dtype=dtype)
    weight = torch.randn(vocabulary, width, dtype=dtype) / width**0.5
    bias = torch.randn(vocabulary, dtype=dtype) * 0.1
    targets = torch.randint(vocabulary, shape)
    logprobs = (hidden @ weight.T + bias).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    near = {name: logprobs + 0.4 * torch.randn(shape, dtype=dtype) for name in PER_TOKEN if name != "advantages"}
    return {
        "hidden": hidden,
        "weight": weight,
        "bias": bias,
        "targets": targets,
        "advantages": torch.randn(shape, dtype=dtype),
        **near,
    }


def run(inputs: dict[str, torch.Tensor], **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """The op's result, and its gradients by hidden, weight and bias."""
    constants = {name: tensor for name, tensor in inputs.items() if name not in TRAINED}
    results = []

    def loss(**leaves: torch.Tensor) -> torch.Tensor:
        results.append(fgrl.ops.linear_ppo_loss(**leaves, **constants, **options))
        return results[0].loss

    grads = gradients(loss, {name: inputs[name] for name in TRAINED})[1]
    assert not results[0].logprobs.requires_grad
    return results[0], grads


def composed(inputs: dict[str, torch.Tensor], mask: torch.Tensor | None, config: PPOLossConfig) -> dict[str, Any]:
    """The oracle of the loss behind the oracle of the log-probabilities."""
    shape = inputs["targets"].shape
    width = inputs["hidden"].shape[-1]
    valid = torch.ones(shape, dtype=torch.bool) if mask is None else mask
    logprobs, entropy = oracles.linear_logprobs(
        inputs["hidden"].reshape(-1, width).numpy(),
        inputs["weight"].numpy(),
        inputs["targets"].reshape(-1).tolist(),
        inputs["bias"].numpy(),
        temperature=0.8,
        softcap=3.0,
        valid=valid.reshape(-1).tolist(),
    )
    expected = oracles.ppo_loss(
        logprobs,
        oracles.flat(inputs["old_logprobs"]),
        oracles.flat(inputs["advantages"]),
        oracles.sequences_of(shape, mask),
        oracles.flat(inputs["ref_logprobs"]),
        entropy,
        oracles.flat(inputs["rollout_logprobs"]),
        **vars(config),
    )
    return expected | {"logprobs": logprobs}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7)], ids=str)
@pytest.mark.parametrize("config", [PPOLossConfig(), EVERYTHING], ids=["defaults", "everything"])
def test_equals_the_oracle(config: PPOLossConfig, shape: tuple[int, int], kind: str) -> None:
    inputs, mask = draw(shape), make_mask(kind, shape)
    result = fgrl.ops.linear_ppo_loss(**inputs, mask=mask, temperature=0.8, softcap=3.0, config=config)
    expected = composed(inputs, mask, config)
    assert_equals_oracle(result.loss, expected["loss"], "loss")
    assert_equals_oracle(result.logprobs, expected["logprobs"], "logprobs")
    for name, value in result.stats.items():
        assert_equals_oracle(value, expected["stats"][name], name)
    assert set(result.stats) == set(expected["stats"])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_equals_the_two_ops_in_a_row(aggregation: str) -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    config = PPOLossConfig(kl_coef=0.2, kl_estimator="k3+", entropy_coef=0.1, aggregation=aggregation)
    options = {"temperature": 0.8, "softcap": 3.0}

    def in_a_row(**leaves: torch.Tensor) -> torch.Tensor:
        logprobs, entropy = fgrl.ops.linear_logprobs(
            **leaves, targets=inputs["targets"], mask=mask, return_entropy=True, **options
        )
        constants = {name: inputs[name] for name in PER_TOKEN}
        return fgrl.ops.ppo_loss(logprobs, **constants, mask=mask, entropy=entropy, normalizer=9, config=config).loss

    result, grads = run(inputs, mask=mask, normalizer=9, config=config, **options)
    loss, expected = gradients(in_a_row, {name: inputs[name] for name in TRAINED})
    torch.testing.assert_close(result.loss, loss)
    for name in TRAINED:
        torch.testing.assert_close(grads[name], expected[name], msg=name)


def test_gradients_in_float64() -> None:
    inputs, mask = draw((2, 3), 3, 5), make_mask("holes", (2, 3))
    constants = {name: tensor for name, tensor in inputs.items() if name not in TRAINED}
    for config in (PPOLossConfig(), EVERYTHING):
        assert torch.autograd.gradcheck(
            lambda hidden, weight, bias, config=config: (
                fgrl.ops.linear_ppo_loss(
                    hidden, weight, bias=bias, **constants, mask=mask, temperature=0.8, softcap=3.0, config=config
                ).loss
            ),
            [inputs[name].requires_grad_() for name in TRAINED],
        )


def test_entropy_bonus_needs_no_entropy_argument() -> None:
    inputs = draw((2, 3))
    plain, _ = run(inputs, config=PPOLossConfig())
    bonus, _ = run(inputs, config=PPOLossConfig(entropy_coef=0.5))
    torch.testing.assert_close(bonus.loss, plain.loss - 0.5 * plain.stats["entropy"])


@pytest.mark.parametrize(("coefficient", "matrices"), [(0.0, 1), (0.1, 3)], ids=["reported", "trained"])
def test_logits_that_are_kept_for_the_backward_pass(coefficient: float, matrices: int) -> None:
    """None; by the reference one `[N, V]`, the log-softmax, and two more where the entropy has a gradient."""
    inputs = {name: tensor.requires_grad_(name in TRAINED) for name, tensor in draw((3, 7), 5, 101).items()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape == (21, 101) and tensor.is_floating_point():
            kept[tensor.data_ptr()] = tensor
        return tensor

    for backend, expected in (("auto", 0), ("reference", matrices)):
        with fgrl.use_backend(backend), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = fgrl.ops.linear_ppo_loss(**inputs, config=PPOLossConfig(entropy_coef=coefficient))
        assert len(kept) == expected
        assert result.stats["entropy"] > 0


def test_on_policy() -> None:
    inputs = draw((2, 3))
    inputs["old_logprobs"] = None
    del inputs["rollout_logprobs"]
    result, grads = run(inputs)
    torch.testing.assert_close(result.loss, -inputs["advantages"].mean())
    assert result.stats["ratio_max"] == 1
    assert float(grads["hidden"].abs().sum()) > 0


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("kind", ["holes", "masked-row", "all-masked"])
def test_nothing_under_the_mask_is_seen_or_differentiated(kind: str, poison: float) -> None:
    inputs, mask = draw((3, 7), dtype=torch.float32), make_mask(kind, (3, 7))
    assert mask is not None
    dirty_inputs = inputs | {name: poisoned(inputs[name], mask, poison) for name in PER_TOKEN}
    dirty_inputs["hidden"] = torch.where(mask[..., None], inputs["hidden"], torch.tensor(poison))
    dirty_inputs["targets"] = torch.where(mask, inputs["targets"], -100)
    clean, dirty = (run(tensors, mask=mask, config=EVERYTHING) for tensors in (inputs, dirty_inputs))
    assert torch.equal(clean[0].loss, dirty[0].loss)
    assert torch.equal(clean[0].logprobs, dirty[0].logprobs)
    assert clean[0].stats == dirty[0].stats
    assert (dirty[0].logprobs[~mask] == 0).all()
    for name in TRAINED:
        assert torch.equal(clean[1][name], dirty[1][name]), name
    assert (dirty[1]["hidden"][~mask] == 0).all()
    if kind == "all-masked":
        assert dirty[0].loss == 0
        assert all((grad == 0).all() for grad in dirty[1].values())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("lengths", [(7, 1, 4), (0, 5, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_packed_equals_padded(dtype: torch.dtype, lengths: tuple[int, ...], aggregation: str) -> None:
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    assert mask is not None
    mask = mask & (torch.arange(7) < torch.tensor(lengths)[:, None])
    config = PPOLossConfig(kl_coef=0.1, entropy_coef=0.1, aggregation=aggregation)
    packed_inputs = {
        name: tensor if name in ("weight", "bias") else pack(tensor, lengths) for name, tensor in inputs.items()
    }
    padded = run(inputs, mask=mask, config=config)
    packed = run(packed_inputs, mask=pack(mask, lengths), cu_seqlens=offsets(lengths, dtype), config=config)
    torch.testing.assert_close(packed[0].loss, padded[0].loss)
    torch.testing.assert_close(packed[0].logprobs, pack(padded[0].logprobs, lengths))
    torch.testing.assert_close(packed[1]["hidden"], pack(padded[1]["hidden"], lengths))
    for name in ("weight", "bias"):
        torch.testing.assert_close(packed[1][name], padded[1][name], msg=name)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_with_a_global_normalizer_add_up_to_one_big_batch(aggregation: str) -> None:
    inputs, mask = draw((6, 4)), make_mask("holes", (6, 4))
    assert mask is not None
    config = PPOLossConfig(kl_coef=0.1, entropy_coef=0.1, aggregation=aggregation)
    count = {"token-mean": int(mask.sum()), "token-sum": None}.get(aggregation, 6)
    whole = run(inputs, mask=mask, config=config)
    sums = {name: torch.zeros_like(inputs[name]) for name in TRAINED}
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = {name: x if name in ("weight", "bias") else x[rows] for name, x in inputs.items()}
        grads = run(part, mask=mask[rows], normalizer=count, config=config)[1]
        sums["hidden"][rows] += grads["hidden"]
        sums["weight"] += grads["weight"]
        sums["bias"] += grads["bias"]
    for name in TRAINED:
        torch.testing.assert_close(sums[name], whole[1][name], msg=name)


@pytest.mark.parametrize("vocabulary", [49152, 151936], ids=["SmolLM", "Qwen"])
def test_real_vocabularies(vocabulary: int) -> None:
    inputs = draw((1, 3), 8, vocabulary, torch.float32)
    ours = run(inputs, config=PPOLossConfig(entropy_coef=0.1))
    exact = run(
        {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()},
        config=PPOLossConfig(entropy_coef=0.1),
    )
    torch.testing.assert_close(ours[0].loss.double(), exact[0].loss, rtol=1e-5, atol=1e-5)
    for name in TRAINED:
        assert_as_accurate(ours[1][name], ours[1][name], exact[1][name], eps=1e-4, message=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs(dtype: torch.dtype) -> None:
    inputs = draw((4, 9), 32, 257)
    inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    config = PPOLossConfig(entropy_coef=0.1)
    ours = run(inputs, config=config)
    exact = run({name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}, config=config)

    def eager(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        log_softmax = (hidden @ weight.T + bias).log_softmax(-1)
        logprobs = log_softmax.gather(-1, inputs["targets"][..., None])[..., 0]
        entropy = -(log_softmax.exp() * log_softmax).sum(-1)
        ratio = (logprobs - inputs["old_logprobs"]).exp()
        advantages = inputs["advantages"]
        loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
        loss = loss * (inputs["old_logprobs"] - inputs["rollout_logprobs"]).exp()
        return (loss - 0.1 * entropy).mean()

    baseline = gradients(eager, {name: inputs[name] for name in TRAINED})
    assert ours[0].loss.dtype == ours[0].logprobs.dtype == torch.float32
    assert_as_accurate(ours[0].loss.detach(), baseline[0], exact[0].loss.detach(), eps=1e-5, message="loss")
    for name in TRAINED:
        assert ours[1][name].dtype == dtype
        assert_as_accurate(ours[1][name], baseline[1][name], exact[1][name], eps=1e-5, message=name)


def test_nothing_packed_has_loss_0_and_a_gradient() -> None:
    hidden, none = torch.zeros(0, 3, requires_grad=True), torch.zeros(0)
    result = fgrl.ops.linear_ppo_loss(
        hidden, torch.zeros(8, 3), none.long(), none, none, cu_seqlens=torch.zeros(2, dtype=torch.int32)
    )
    result.loss.backward()
    assert result.loss == 0
    assert hidden.grad is not None


@pytest.mark.parametrize("chunk_tokens", [None, 4, 1], ids=str)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss", losses.POLICY_LOSSES)
def test_sequences_cross_chunks(loss: str, level: str, chunk_tokens: int | None) -> None:
    """Every policy loss, of tokens whose gradient depends on rows that other chunks hold."""
    inputs, mask = draw((3, 7)), make_mask("holes", (3, 7))
    config = losses.everything(loss, importance_level=level, aggregation="seq-mean-token-mean")
    result, grads = run(inputs, mask=mask, config=config, chunk_tokens=chunk_tokens)
    with fgrl.use_backend("reference"):
        expected, expected_grads = run(inputs, mask=mask, config=config)
    torch.testing.assert_close(result.loss, expected.loss)
    torch.testing.assert_close(result.logprobs, expected.logprobs)
    torch.testing.assert_close(result.stats, expected.stats)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, msg=lambda m, n=name: f"{n}: {m}")
