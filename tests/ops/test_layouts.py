"""Where the elements of a tensor lie in memory makes no difference to any op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calls import LEADERS, SEQUENCE_OPS, flattened, good, packed
from torch import Tensor

import fgrl

CALLS = [*((op, good) for op in LEADERS), *((op, packed) for op in SEQUENCE_OPS)]


def every_other(tensor: Tensor) -> Tensor:
    """Every second element along the last dimension: a packed tensor stays so when it is flattened."""
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), 99).to(tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


def transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else every_other(tensor)


@pytest.mark.parametrize("lay", [every_other, transposed])
@pytest.mark.parametrize(("op", "arguments"), CALLS, ids=[f"{op}-{call.__name__}" for op, call in CALLS])
def test_strided_inputs(op: str, arguments: Any, lay: Any) -> None:
    inputs = arguments(op)
    for name in inputs.keys() & {"bootstrap", "sequence_rewards", "bias", "norm_weight"}:
        inputs[name] = torch.randn_like(inputs[name])
    for name in inputs.keys() & {"chosen_edits", "rejected_edits", "mask", "chosen_mask", "rejected_mask"}:
        inputs[name] = (torch.rand_like(inputs[name]) < 0.7).float()
    if "targets" in inputs:
        inputs["targets"] = torch.randint_like(inputs["targets"], 8)
    if arguments is packed:
        inputs["cu_seqlens"] = torch.tensor([0, 2, 6])

    def run(tensors: dict[str, Tensor]) -> list[Tensor]:
        leaves = {n: t.detach().requires_grad_() if n == LEADERS[op] else t for n, t in tensors.items()}
        outputs = flattened(getattr(fgrl.ops, op)(**leaves))
        sum(tensor.sum() for tensor in outputs if tensor.requires_grad).backward()
        return [*(tensor.detach() for tensor in outputs), leaves[LEADERS[op]].grad]

    expected = run(inputs)
    torch.testing.assert_close(run({name: lay(tensor) for name, tensor in inputs.items()}), expected)
    for name, tensor in inputs.items():
        torch.testing.assert_close(run({**inputs, name: lay(tensor)}), expected, msg=lambda m, n=name: f"{n}: {m}")
