"""Inside `torch.autocast` every op computes what it computes outside: low precision in, fp32 inside, the same bits.

The `linear_*` ops round the operands of their products; `test_linear_autocast.py` is about those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fgrl
from fgrl import backend

B, T, D, V = 3, 9, 16, 33


def arguments(op: str, dtype: torch.dtype) -> dict[str, Any]:
    """Tensor arguments of an op, with every floating-point one of them differentiable."""
    rows = [torch.randn(B, T, dtype=dtype) for _ in range(4)]
    mask = torch.rand(B, T) < 0.7
    linear = {"hidden": torch.randn(B, T, D, dtype=dtype), "weight": torch.randn(V, D, dtype=dtype)}
    targets = torch.randint(V, (B, T))
    inputs: dict[str, Any] = {
        "token_reward_head": {**linear, "bias": torch.randn(V, dtype=dtype), "norm_weight": linear["weight"][0]},
        "edit_preference_loss": dict(
            zip(("chosen_rewards", "rejected_rewards"), rows[:2], strict=True),
            chosen_edits=mask,
            rejected_edits=~mask,
            unchanged_weight=0.1,
        ),
        "gae": {"rewards": rows[0], "values": rows[1], "mask": mask},
        "token_advantages": dict(
            zip(("token_rewards", "values", "logprobs", "ref_logprobs"), rows, strict=True), mask=mask, kl_coef=0.1
        ),
        "group_advantages": {"rewards": rows[0][:, 0], "groups": targets[:, 0], "mask": mask, "token_rewards": rows[1]},
        "whiten": {"advantages": rows[0], "mask": mask},
        "ppo_loss": dict(zip(("logprobs", "old_logprobs", "advantages"), rows[:3], strict=True), mask=mask),
        "value_loss": dict(zip(("values", "old_values", "returns"), rows[:3], strict=True), mask=mask),
        "linear_logprobs": {**linear, "targets": targets, "mask": mask, "return_entropy": True},
        "linear_ppo_loss": {**linear, "targets": targets, "old_logprobs": rows[0] - 3, "advantages": rows[1]},
    }[op]
    return {name: leaf(value) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_() if tensor.is_floating_point() else tensor


def tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    else:
        for part in result.values() if isinstance(result, dict) else result:
            yield from tensors(part)


def outputs_and_gradients(outputs: list[Tensor], inputs: dict[str, Any]) -> list[Tensor]:
    leaves = [value for value in inputs.values() if isinstance(value, Tensor) and value.requires_grad]
    differentiable = sum(output.square().sum() for output in outputs if output.requires_grad)
    grads = torch.autograd.grad(differentiable, leaves, allow_unused=True)
    return [*(output.detach() for output in outputs), *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", [op for op in backend.ops() if op != "align_edits" and not op.startswith("linear_")])
def test_same_bits_inside_and_outside(op: str, dtype: torch.dtype, autocast: torch.dtype) -> None:
    inputs = arguments(op, dtype)
    run = getattr(fgrl.ops, op)
    outside = list(tensors(run(**inputs)))
    with torch.autocast("cpu", autocast):
        inside = list(tensors(run(**inputs)))
        assert torch.is_autocast_enabled("cpu"), "the caller's autocast goes on after the op"
    assert {output.dtype for output in inside} <= {torch.float32, torch.float64}
    expected = outputs_and_gradients(outside, inputs)
    for ours, plain in zip(outputs_and_gradients(inside, inputs), expected, strict=True):
        assert ours.dtype == plain.dtype
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("enabled", [True, False], ids=["autocast", "plain"])
@pytest.mark.parametrize("op", ["token_reward_head", "edit_preference_loss"])
def test_compiled_inside_and_outside(op: str, enabled: bool) -> None:
    """Gradients to bf16: torch.compile traces a backward pass under the caller's autocast, whatever the forward did."""
    inputs = arguments(op, torch.bfloat16)
    eager = list(tensors(getattr(fgrl.ops, op)(**inputs)))
    compiled = torch.compile(getattr(fgrl.ops, op), backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        outputs = list(tensors(compiled(**inputs)))
    for ours, plain in zip(outputs, eager, strict=True):
        torch.testing.assert_close(ours, plain)
    grads, expected = (outputs_and_gradients(results, inputs)[len(eager) :] for results in (outputs, eager))
    for ours, plain in zip(grads, expected, strict=True):
        assert (ours - plain).float().norm() <= 1e-2 * plain.float().norm()
