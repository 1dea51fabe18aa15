"""The references are the specification: torch alone, trusted by the dispatcher alone, and what `fgrl.ops` computes."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fgrl

PACKAGE = Path(fgrl.__file__).parent


def imports(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted((PACKAGE / "reference").glob("*.py")), ids=lambda path: path.stem)
def test_a_reference_needs_torch_alone(path: Path) -> None:
    for name in imports(path):
        top = name.partition(".")[0]
        assert top in ("torch", *sys.stdlib_module_names) or name.startswith("fgrl."), name
        if top == "fgrl":
            assert name.split(".")[1] in ("reference", "types", "alignment"), name


@pytest.mark.parametrize("folder", [PACKAGE / "ops", PACKAGE.parent / "kernels"], ids=lambda folder: folder.name)
def test_no_optimised_code_imports_a_reference(folder: Path) -> None:
    for path in folder.rglob("*.py"):
        if path.name != "align_edits.py":  # dispatches by itself: its fallback has other inputs
            assert not [name for name in imports(path) if name.startswith("fgrl.reference")], path


def calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """One call of every op with floating-point inputs."""
    torch.manual_seed(0)
    rows = [torch.randn(2, 5) for _ in range(4)]
    mask = torch.rand(2, 5) < 0.7
    hidden, weight, targets = torch.randn(2, 5, 4), torch.randn(9, 4), torch.randint(9, (2, 5))
    return {
        "token_reward_head": ((hidden, weight[0]), {"norm_weight": weight[1]}),
        "edit_preference_loss": ((rows[0], rows[1], mask, ~mask), {"reduction": "mean"}),
        "gae": ((rows[0], rows[1], mask), {"lam": torch.tensor([0.5, 0.9])}),
        "token_advantages": ((*rows, mask), {"kl_coef": 0.1}),
        "group_advantages": ((rows[0][:, 0], targets[:, 0], mask), {"token_rewards": rows[1], "segment_ids": targets}),
        "whiten": ((rows[0], mask), {}),
        "ppo_loss": ((*rows[:3], mask), {"ref_logprobs": rows[3]}),
        "value_loss": ((*rows[:3], mask), {}),
        "linear_logprobs": ((hidden, weight, targets), {"mask": mask}),
        "linear_ppo_loss": ((hidden, weight, targets, rows[0], rows[1], mask), {}),
        "linear_kl": ((hidden, weight, hidden * 2, weight + 1, mask), {"divergence": "jsd"}),
        "linear_topk_kl": ((hidden, weight, targets[..., None], -rows[0].abs()[..., None], mask), {}),
    }


def tensors(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    else:
        for part in result.values() if isinstance(result, dict) else result:
            yield from tensors(part)


@pytest.mark.parametrize("op", calls())
def test_the_op_on_request_is_the_reference_bit_for_bit(op: str) -> None:
    positional, named = calls()[op]
    with fgrl.use_backend("reference"):
        ours = getattr(fgrl.ops, op)(*positional, **named)
    for left, right in zip(tensors(ours), tensors(getattr(fgrl.reference, op)(*positional, **named)), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("op", calls())
def test_float64_stays_float64_and_all_else_is_fp32(op: str) -> None:
    positional, named = calls()[op]

    def cast(dtype: torch.dtype) -> Any:
        change = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in positional]
        return getattr(fgrl.reference, op)(*change, **named)

    for given, computed in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        for index, result in enumerate(tensors(cast(given))):
            is_moments = op == "token_advantages" and index == 3
            assert result.dtype == (torch.float64 if is_moments else computed), (given, index)


@pytest.mark.parametrize("op", calls())
def test_an_op_without_the_backend_demanded_raises(op: str) -> None:
    positional, named = calls()[op]
    with fgrl.use_backend("triton"), pytest.raises(RuntimeError, match=rf"{op} cannot run on the requested backend"):
        getattr(fgrl.ops, op)(*positional, **named)
