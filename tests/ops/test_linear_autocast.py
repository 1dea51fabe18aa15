"""Mixed precision of the `linear_*` ops: inside autocast operands of products are rounded, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numerics import assert_as_accurate, leaf
from torch import Tensor

import fgrl
from fgrl import backend

N, D, V = 12, 16, 4999
OPS = ("linear_logprobs", "linear_ppo_loss")
AUTOCAST = (torch.bfloat16, torch.float16)
IS_FUSED = backend.resolve("linear_logprobs", torch.device("cpu")) != "reference"
pytestmark = pytest.mark.usefixtures("each_backend")


def draw(hidden: torch.dtype = torch.float32, weight: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "hidden": torch.randn(N, D).to(hidden).requires_grad_(),
        "weight": (torch.randn(V, D) * 3 / D**0.5).to(weight).requires_grad_(),
        "bias": torch.randn(V).requires_grad_(),
    }


TARGETS, MASK = torch.arange(N) * 400, torch.arange(N) % 3 != 0


def run(op: str, inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """A loss and the log-probabilities."""
    rest = {"targets": TARGETS, "mask": MASK, "softcap": 20.0, **options}
    if op == "linear_logprobs":
        logprobs, entropy = fgrl.ops.linear_logprobs(**inputs, **rest, return_entropy=True)
        return (logprobs * TARGETS).sum() / 400 + entropy.sum(), logprobs
    loss, _, logprobs = fgrl.ops.linear_ppo_loss(
        **inputs, **rest, old_logprobs=torch.full((N,), -9.0), advantages=TARGETS / 400 - 5
    )
    return loss, logprobs


def results(op: str, inputs: dict[str, Tensor], **options: Any) -> list[Tensor]:
    loss, logprobs = run(op, inputs, **options)
    return [logprobs.detach(), *torch.autograd.grad(loss, list(inputs.values()))]


def rounded(inputs: dict[str, Tensor], dtype: torch.dtype, to: torch.dtype) -> dict[str, Tensor]:
    operands = {name: leaf(inputs[name].to(dtype).to(to)) for name in ("hidden", "weight")}
    return {**operands, "bias": leaf(inputs["bias"].to(to))}


@pytest.mark.parametrize("dtype", AUTOCAST, ids=str)
@pytest.mark.parametrize(
    ("hidden", "weight"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("op", OPS)
def test_operands_are_rounded_and_nothing_else(
    op: str, hidden: torch.dtype, weight: torch.dtype, dtype: torch.dtype
) -> None:
    """The results are those of rounded operands in fp64 up to the error of fp32, and gradients come as the inputs do.

    Where the processor multiplies bf16, gradients by logits are operands too, and rounded.
    """
    inputs = draw(hidden, weight)
    with torch.autocast("cpu", dtype):
        loss, logprobs = run(op, inputs)
    assert logprobs.dtype == loss.dtype == torch.float32
    grads = torch.autograd.grad(loss, list(inputs.values()))
    exact = results(op, rounded(inputs, dtype, torch.float64))
    torch.testing.assert_close(logprobs.detach().double(), exact[0], rtol=1e-5, atol=1e-5)
    for (name, tensor), grad, expected in zip(inputs.items(), grads, exact[1:], strict=True):
        assert grad.dtype == tensor.dtype, name
        assert (grad.double() - expected).norm() <= 5e-3 * expected.norm(), name


@pytest.mark.parametrize("dtype", AUTOCAST, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_as_accurate_as_pytorch_under_the_same_autocast(op: str, dtype: torch.dtype) -> None:
    inputs = draw()

    def plain() -> list[Tensor]:
        with torch.autocast("cpu", dtype):
            logits = torch.nn.functional.linear(inputs["hidden"], inputs["weight"], inputs["bias"])
            log_softmax = torch.log_softmax(20 * torch.tanh(logits / 20), -1)
        logprobs = torch.where(MASK, log_softmax.float().gather(1, TARGETS[:, None])[:, 0], 0)
        if op == "linear_logprobs":
            entropy = torch.where(MASK, -(log_softmax.float().exp() * log_softmax.float()).sum(-1), 0)
            loss = (logprobs * TARGETS).sum() / 400 + entropy.sum()
        else:
            loss = fgrl.reference.ppo_loss(logprobs, torch.full((N,), -9.0), TARGETS / 400 - 5, MASK).loss
        return [logprobs.detach(), *torch.autograd.grad(loss, list(inputs.values()))]

    with torch.autocast("cpu", dtype):
        loss, logprobs = run(op, inputs)
    ours = [logprobs.detach(), *torch.autograd.grad(loss, list(inputs.values()))]
    exact = results(op, {name: leaf(tensor.double()) for name, tensor in inputs.items()})
    for name, *found in zip(("logprobs", *inputs), ours, plain(), exact, strict=True):
        assert_as_accurate(*found, message=name)


@pytest.mark.parametrize("op", OPS)
def test_a_region_without_autocast_and_fp64_are_left_alone(op: str) -> None:
    inputs = draw()
    plain = results(op, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            torch.testing.assert_close(results(op, inputs), plain, rtol=0, atol=0)
        doubles = {name: leaf(tensor.double()) for name, tensor in inputs.items()}
        inside = run(op, doubles)[1]
    torch.testing.assert_close(inside, results(op, doubles)[0], rtol=0, atol=0)


@pytest.mark.parametrize("op", OPS)
def test_compiled_checkpointed_and_merged_heads(op: str) -> None:
    """Each of them runs parts of the call at another time; autocast is that of the call."""
    if fgrl.backend.resolve(op, torch.device("cpu")) == "reference":
        pytest.skip("the reference selects rows by the mask, which breaks the graph")
    inputs = draw()
    with torch.autocast("cpu", torch.bfloat16):
        loss, logprobs = run(op, inputs)
    expected = [logprobs.detach(), *torch.autograd.grad(loss, list(inputs.values()))]
    assert not torch.equal(expected[0], results(op, inputs)[0]), "autocast makes a difference here"

    torch._dynamo.reset()
    compiled = torch.compile(lambda **tensors: run(op, tensors), backend="aot_eager", fullgraph=True)

    def checkpointed(**tensors: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(lambda: run(op, tensors), use_reentrant=False)

    def merged(weight: Tensor, **tensors: Tensor) -> Any:
        return run(op, {**tensors, "weight": weight + torch.zeros(V, 1) @ torch.zeros(1, D)})

    for function in (compiled, checkpointed, merged):
        for is_enabled in (True, False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
                loss, logprobs = function(**inputs)
            found = [logprobs.detach(), *torch.autograd.grad(loss, list(inputs.values()))]
            if is_enabled:
                for ours, eager in zip(found, expected, strict=True):
                    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
            else:
                assert not torch.equal(found[0], expected[0])


@pytest.mark.skipif(not IS_FUSED, reason="nothing fused runs here")
@pytest.mark.parametrize("op", OPS)
def test_the_head_is_cast_once_for_all_chunks_and_both_passes(op: str) -> None:
    inputs = draw()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with fgrl.use_backend("auto"), torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = run(op, inputs, chunk_tokens=2)
        loss.backward()
    casts = [event for event in profile.events() if event.name == "aten::_to_copy" and event.input_shapes[0] == [V, D]]
    assert len(casts) == 1
