"""The kernels of `group_advantages` against the reference in float64, over several blocks and as they ship."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numerics import assert_as_accurate, make_mask, offsets, pack
from torch import Tensor

import fgrl

pytestmark = pytest.mark.usefixtures("on_triton")

triton = pytest.importorskip("triton")

from fgrl.kernels.group_advantages import Blocks  # noqa: E402

BLOCK = 32
SMALL = Blocks(min_block=16, max_block=BLOCK, rows=2, columns=4)
# The arguments that are left out, and the options.
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "outcomes": (("token_rewards", "segment_ids"), {"baseline": "leave-one-out", "scale": "batch"}),
    "tokens": (("rewards", "segment_ids"), {"gamma": 0.9}),
    "segments": (("rewards",), {"gamma": 0.9, "scale": "batch", "baseline": "leave-one-out"}),
    "all": ((), {"baseline": "none"}),
    "least": ((), {"min_temperature": 0, "scale": "none"}),
    "softmin": (("segment_ids",), {"min_temperature": 0.3, "baseline": "leave-one-out"}),
}


def draw(batch: int, length: int, device: torch.device, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        "rewards": torch.randn(batch, device=device).to(dtype),
        "groups": torch.tensor([7, -3, 2**40], device=device)[torch.randint(3, (batch,), device=device)],
        "token_rewards": torch.randn(batch, length, device=device).to(dtype),
        "segment_ids": (torch.rand(batch, length, device=device) < 0.1).cumsum(1),
    }


def run(inputs: dict[str, Tensor], mask: Tensor, case: str, **options: Any) -> Tensor:
    dropped, chosen = CASES[case]
    kept = {name: None if name in dropped else tensor for name, tensor in inputs.items()}
    return fgrl.ops.group_advantages(**kept, mask=mask, **chosen, **options)


def exact(inputs: dict[str, Tensor], mask: Tensor, case: str, **options: Any) -> Tensor:
    with fgrl.use_backend("reference"):
        return run({n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}, mask, case, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, BLOCK, 3 * BLOCK + 5], ids=str)
def test_over_several_blocks(length: int, case: str, device: torch.device, launch_with: Any) -> None:
    """A segment and a hole across the edge of a block, more sequences than a program compares."""
    launch_with("group_advantages.group_advantages", blocks=SMALL)
    inputs, mask = draw(5, length, device), make_mask("holes", (5, length))
    assert mask is not None
    mask[2] = False
    ours = run(inputs, mask.to(device), case)
    torch.testing.assert_close(ours, exact(inputs, mask.to(device), case), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["outcomes", "softmin"])
def test_shipped_blocks(case: str, device: torch.device) -> None:
    inputs, mask = draw(3, 1100, device, torch.float32), make_mask("holes", (3, 1100))
    assert mask is not None
    mask = mask.to(device)
    ours = run(inputs, mask, case)
    with fgrl.use_backend("reference"):
        plain = run(inputs, mask, case)
    assert ours.dtype == torch.float32
    assert_as_accurate(ours, plain, exact(inputs, mask, case))


@pytest.mark.parametrize("case", ["outcomes", "all"])
def test_packed_equals_padded(case: str, device: torch.device, launch_with: Any) -> None:
    launch_with("group_advantages.group_advantages", blocks=SMALL)
    lengths = (BLOCK + 5, 0, 1, 7)
    inputs, mask = draw(4, BLOCK + 5, device), make_mask("holes", (4, BLOCK + 5))
    assert mask is not None
    mask &= torch.arange(BLOCK + 5) < torch.tensor(lengths)[:, None]
    mask = mask.to(device)
    padded = run(inputs, mask, case)
    packed = {name: pack(tensor, lengths) if tensor.ndim == 2 else tensor for name, tensor in inputs.items()}
    ours = run(packed, pack(mask, lengths), case, cu_seqlens=offsets(lengths).to(device))
    torch.testing.assert_close(ours, pack(padded, lengths), rtol=1e-10, atol=1e-10)
    assert torch.equal(ours, run(packed, pack(mask, lengths), case, cu_seqlens=offsets(lengths).to(device)))


@pytest.mark.parametrize("case", ["all", "least", "softmin"])
def test_a_nan_makes_its_group_nan_and_stays_out_from_under_a_mask(
    case: str, device: torch.device, launch_with: Any
) -> None:
    launch_with("group_advantages.group_advantages", blocks=SMALL)
    inputs, mask = draw(4, BLOCK + 5, device), torch.ones(4, BLOCK + 5, dtype=torch.bool, device=device)
    inputs["groups"] = torch.tensor([0, 1, 0, 1], device=device)
    mask[:, BLOCK + 2] = False
    inputs["token_rewards"][:, BLOCK + 2] = float("nan")
    assert run(inputs, mask, case).isfinite().all()
    inputs["token_rewards"][1, -1] = float("nan")
    ours, expected = run(inputs, mask, case), exact(inputs, mask, case)
    assert torch.equal(ours.isfinite(), expected.isfinite())
    assert ours[[0, 2]].isfinite().all()


def test_as_an_operator(device: torch.device) -> None:
    inputs, mask = draw(2, 9, device, torch.float32), make_mask("holes", (2, 9))
    assert mask is not None
    given = (inputs["rewards"], inputs["groups"], mask.to(device), inputs["token_rewards"], inputs["segment_ids"], None)
    torch.library.opcheck(torch.ops.fgrl.group_advantages.default, (*given, 1, 0, 0.9, 0.1))
