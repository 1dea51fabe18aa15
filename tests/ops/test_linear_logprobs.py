"""`linear_logprobs`: log-softmax of the target and entropy, straight from hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from numerics import POISONS, assert_as_accurate, assert_equals_oracle, gradients, make_mask

import fgrl

# One row, width and word; odd everything; a vocabulary past a power of two.
SIZES = {"1x1x1": (1, 1, 1), "5x7x13": (5, 7, 13), "3x16x65": (3, 16, 65)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 2.0},
    "softcap, then temperature": {"softcap": 2.0, "temperature": 1.6},
}


def draw(rows: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return {
        "hidden": torch.randn(rows, width, dtype=dtype),
        "weight": torch.randn(vocabulary, width, dtype=dtype),
        "targets": torch.randint(vocabulary, (rows,)),
        "bias": torch.randn(vocabulary, dtype=dtype),
    }


def total(outputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """A scalar whose gradient is different at each entry of both outputs."""
    logprobs, entropy = outputs
    steps = torch.arange(1, logprobs.numel() + 1, dtype=logprobs.dtype).reshape(logprobs.shape)
    return (logprobs * steps).sum() + (entropy * steps.flip(0)).sum()


@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_equals_the_oracle(size: tuple[int, int, int], options: dict[str, Any], with_bias: bool) -> None:
    inputs = draw(*size)
    if not with_bias:
        del inputs["bias"]
    logprobs, entropy = fgrl.ops.linear_logprobs(**inputs, **options, return_entropy=True)
    expected = oracles.linear_logprobs(
        inputs["hidden"].numpy(),
        inputs["weight"].numpy(),
        inputs["targets"].tolist(),
        oracles.flat(inputs.get("bias")),
        **options,
    )
    assert_equals_oracle(logprobs, expected[0], "logprobs")
    assert_equals_oracle(entropy, expected[1], "entropy")
    assert torch.equal(fgrl.ops.linear_logprobs(**inputs, **options), logprobs)


def test_gradients_equal_central_differences_of_the_oracle() -> None:
    inputs, options = draw(2, 3, 5), {"softcap": 2.0, "temperature": 0.8}
    targets = inputs.pop("targets")
    grads = gradients(
        lambda **leaves: total(fgrl.ops.linear_logprobs(**leaves, targets=targets, return_entropy=True, **options)),
        inputs,
    )[1]

    def oracle_total(point: Any, name: str) -> float:
        now = inputs | {name: torch.as_tensor(point).reshape(inputs[name].shape)}
        outputs = oracles.linear_logprobs(
            now["hidden"].numpy(), now["weight"].numpy(), targets.tolist(), now["bias"].numpy(), **options
        )
        return float(total((torch.as_tensor(outputs[0]), torch.as_tensor(outputs[1]))))

    for name in inputs:
        expected = oracles.central_difference(lambda x, name=name: oracle_total(x, name), oracles.flat(inputs[name]))
        torch.testing.assert_close(
            grads[name].reshape(-1), torch.as_tensor(expected), rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_gradients_in_float64() -> None:
    inputs, mask = draw(4, 3, 5), torch.tensor([1, 0, 1, 1])
    targets = inputs.pop("targets")
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias: fgrl.ops.linear_logprobs(
            hidden, weight, targets, bias=bias, mask=mask, temperature=0.9, softcap=3.0, return_entropy=True
        ),
        [tensor.requires_grad_() for tensor in inputs.values()],
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 7)], ids=str)
def test_padded_equals_packed(shape: tuple[int, int]) -> None:
    inputs, mask = draw(shape[0] * shape[1], 5, 11), make_mask("holes", shape)
    assert mask is not None
    targets = inputs.pop("targets")

    def padded(hidden: torch.Tensor, **leaves: torch.Tensor) -> torch.Tensor:
        outputs = fgrl.ops.linear_logprobs(
            hidden.reshape(*shape, 5), targets=targets.reshape(shape), mask=mask, return_entropy=True, **leaves
        )
        assert outputs[0].shape == outputs[1].shape == shape
        return total(tuple(output.reshape(-1) for output in outputs))

    def packed(**leaves: torch.Tensor) -> torch.Tensor:
        return total(fgrl.ops.linear_logprobs(targets=targets, mask=mask.reshape(-1), return_entropy=True, **leaves))

    rows, packed_rows = gradients(padded, inputs), gradients(packed, inputs)
    torch.testing.assert_close(rows, packed_rows)


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("kind", ["holes", "masked-row", "all-masked"])
def test_nothing_under_the_mask_is_seen_or_differentiated(kind: str, poison: float) -> None:
    inputs, mask = draw(21, 5, 11, torch.float32), make_mask(kind, (3, 7))
    assert mask is not None
    mask = mask.reshape(-1)
    targets = inputs.pop("targets")
    ignored = torch.where(mask, targets, -100)

    def run(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        def loss(**leaves: torch.Tensor) -> torch.Tensor:
            outputs = fgrl.ops.linear_logprobs(targets=targets, mask=mask, return_entropy=True, **leaves)
            for output in outputs:
                assert (output[~mask] == 0).all()
            return total(outputs)

        return gradients(loss, inputs | {"hidden": hidden})

    clean = run(inputs["hidden"], targets)
    dirty = run(torch.where(mask[:, None], inputs["hidden"], torch.tensor(poison)), ignored)
    assert torch.equal(clean[0], dirty[0])
    for name in inputs:
        assert torch.equal(clean[1][name], dirty[1][name]), name
    assert (dirty[1]["hidden"][~mask] == 0).all()
    if kind == "all-masked":
        assert all((grad == 0).all() for grad in dirty[1].values())


@pytest.mark.parametrize("bad", [2**31 - 1, -100, -(2**31)], ids=str)
def test_any_target_is_allowed_under_the_mask(bad: int) -> None:
    targets = torch.tensor([1, bad], dtype=torch.int32)
    logprobs = fgrl.ops.linear_logprobs(torch.zeros(2, 3), torch.zeros(8, 3), targets, mask=torch.tensor([1, 0]))
    torch.testing.assert_close(logprobs, -torch.tensor([8.0, 1.0]).log())


def test_a_masked_row_costs_nothing() -> None:
    """Its gradient would otherwise be 0 times whatever the row holds; here no product sees the row at all."""
    hidden = torch.randn(1000, 4, requires_grad=True)
    mask = torch.zeros(1000, dtype=torch.bool)
    mask[7] = True
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        fgrl.ops.linear_logprobs(hidden, torch.randn(50, 4), torch.zeros(1000, dtype=torch.long), mask=mask)
    products = [event.input_shapes for event in profile.events() if event.name in ("aten::mm", "fgrl::matmul")]
    assert products
    assert sum(shapes[0][0] for shapes in products) == 1


@pytest.mark.parametrize("vocabulary", [49152, 151936], ids=["SmolLM", "Qwen"])
def test_real_vocabularies(vocabulary: int) -> None:
    inputs = draw(3, 16, vocabulary, torch.float32)
    inputs["targets"] = torch.tensor([0, vocabulary // 2, vocabulary - 1])  # the last word, and not a tail's neighbour
    targets = inputs.pop("targets")

    def run(**leaves: torch.Tensor) -> torch.Tensor:
        return total(fgrl.ops.linear_logprobs(**leaves, targets=targets, return_entropy=True))

    ours, exact = gradients(run, inputs), gradients(run, {name: x.double() for name, x in inputs.items()})
    logits = inputs["hidden"].double() @ inputs["weight"].double().T + inputs["bias"].double()
    log_softmax = logits.log_softmax(-1)
    expected = total((log_softmax[torch.arange(3), targets], -(log_softmax.exp() * log_softmax).sum(-1)))
    torch.testing.assert_close(exact[0], expected)
    torch.testing.assert_close(ours[0].double(), expected, rtol=1e-5, atol=1e-4)
    for name in inputs:
        assert_as_accurate(ours[1][name], ours[1][name], exact[1][name], eps=1e-4, message=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs(dtype: torch.dtype) -> None:
    inputs = draw(9, 64, 517, dtype)
    inputs["weight"] = inputs["weight"] / 8
    targets = inputs.pop("targets")

    def ours(**leaves: torch.Tensor) -> torch.Tensor:
        outputs = fgrl.ops.linear_logprobs(**leaves, targets=targets, return_entropy=True, temperature=0.8)
        assert outputs[0].dtype in (torch.float32, torch.float64)
        return total(outputs)

    def eager(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        log_softmax = ((hidden @ weight.T + bias) / 0.8).log_softmax(-1)
        return total((log_softmax[torch.arange(9), targets], -(log_softmax.exp() * log_softmax).sum(-1)))

    mine, baseline = gradients(ours, inputs), gradients(eager, inputs)
    exact = gradients(ours, {name: tensor.double() for name, tensor in inputs.items()})
    assert_as_accurate(mine[0], baseline[0], exact[0], eps=1e-3, message="outputs")
    for name in inputs:
        assert mine[1][name].dtype == dtype
        assert_as_accurate(mine[1][name], baseline[1][name], exact[1][name], eps=1e-4, message=name)


def test_logits_are_not_rounded_before_the_softmax() -> None:
    """A logit of 257 does not exist in bf16, which would round it to 256 and turn odds of e into even ones."""
    hidden = torch.ones(1, 2, dtype=torch.bfloat16)
    weight = torch.tensor([[256.0, 1.0], [256.0, 0.0]], dtype=torch.bfloat16)
    logprob = fgrl.ops.linear_logprobs(hidden, weight, torch.tensor([0]))
    torch.testing.assert_close(logprob, torch.tensor([-0.313262]))


@pytest.mark.parametrize("scale", [1e4, 1e-6], ids=str)
def test_extreme_logits_stay_finite(scale: float) -> None:
    inputs = draw(5, 7, 13, torch.float32)
    targets = inputs.pop("targets")

    def run(**leaves: torch.Tensor) -> torch.Tensor:
        logprobs, entropy = fgrl.ops.linear_logprobs(
            **leaves, targets=targets, return_entropy=True, temperature=1 / scale
        )
        assert (logprobs <= 0).all()
        assert (entropy >= -1e-6).all()
        return total((logprobs, entropy))

    value, grads = gradients(run, inputs)
    assert torch.isfinite(value)
    assert all(torch.isfinite(grad).all() for grad in grads.values())


def test_a_banned_word_has_no_share_in_the_entropy() -> None:
    bias = torch.tensor([0.0, 0.0, float("-inf")], requires_grad=True)
    hidden = torch.zeros(1, 2, requires_grad=True)
    logprobs, entropy = fgrl.ops.linear_logprobs(
        hidden, torch.ones(3, 2), torch.tensor([0]), bias=bias, return_entropy=True
    )
    torch.testing.assert_close(entropy, torch.tensor([2.0]).log())
    (logprobs + entropy).sum().backward()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_entropy_of_even_odds() -> None:
    entropy = fgrl.ops.linear_logprobs(
        torch.zeros(1, 3), torch.randn(8, 3), torch.tensor([1]), return_entropy=True, softcap=1.0
    )[1]
    torch.testing.assert_close(entropy, torch.tensor([8.0]).log())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_target_dtypes(dtype: torch.dtype) -> None:
    inputs = draw(5, 7, 13)
    expected = fgrl.ops.linear_logprobs(**inputs)
    assert torch.equal(fgrl.ops.linear_logprobs(**inputs | {"targets": inputs["targets"].to(dtype)}), expected)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (2, 0)], ids=str)
def test_no_rows(shape: tuple[int, ...]) -> None:
    hidden = torch.zeros(*shape, 3, requires_grad=True)
    outputs = fgrl.ops.linear_logprobs(hidden, torch.zeros(8, 3), torch.zeros(shape).long(), return_entropy=True)
    assert outputs[0].shape == outputs[1].shape == shape
    (outputs[0].sum() + outputs[1].sum()).backward()
    assert hidden.grad is not None


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16], ids=str)
def test_masks_of_every_dtype(dtype: torch.dtype) -> None:
    inputs, mask = draw(5, 7, 13), torch.tensor([True, False, True, True, False])
    expected = fgrl.ops.linear_logprobs(**inputs, mask=mask)
    assert torch.equal(fgrl.ops.linear_logprobs(**inputs, mask=mask.to(dtype)), expected)


def test_strided_inputs() -> None:
    """Hidden states, head, targets and bias: these two reach kernels that take them as they are."""
    inputs = draw(10, 14, 26)
    hidden, weight, targets = inputs["hidden"][::2, ::2], inputs["weight"][::2, ::2], inputs["targets"][::2]
    bias, grad = torch.randn(26)[::2], torch.randn(5)

    def results(layout: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in map(layout, (hidden, weight, bias))]
        logprobs = fgrl.ops.linear_logprobs(leaves[0], leaves[1], layout(targets), bias=leaves[2])
        return [logprobs, *torch.autograd.grad(logprobs, leaves, grad.to(logprobs.dtype))]

    targets.remainder_(13)
    for strided, dense in zip(results(lambda tensor: tensor), results(torch.Tensor.contiguous), strict=True):
        torch.testing.assert_close(strided, dense)
