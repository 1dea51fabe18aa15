"""The kernels of `gae` and `token_advantages` on both of their paths, against the reference in float64."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from numerics import MASKS, POISONS, assert_as_accurate, make_mask, offsets, pack, poisoned
from torch import Tensor

import fgrl
from fgrl.types import KLEstimator

pytestmark = pytest.mark.usefixtures("on_triton", "path")

triton = pytest.importorskip("triton")

from fgrl.kernels import _advantages  # noqa: E402
from fgrl.kernels._advantages import Split  # noqa: E402

BLOCK = 32
PATHS = {
    name: Split(min_block=16, max_block=BLOCK, pieces_at_once=4, in_pieces=name == "pieces")
    for name in ("sequences", "pieces")
}
# One token; an odd one less and one more than a block; a block; several blocks, of which the first is not full.
LENGTHS = {"1": 1, "block-1": BLOCK - 1, "block": BLOCK, "block+1": BLOCK + 1, "blocks": 3 * BLOCK + 5}
TOKENS = ("token_rewards", "values", "logprobs", "ref_logprobs")
OPTIONS: dict[str, Any] = {
    "reward_scale": 0.5,
    "reward_clip": 1.0,
    "kl_coef": 0.3,
    "kl_estimator": "k3",
    "gamma": 0.99,
    "lam": 0.95,
}


@pytest.fixture(params=PATHS.values(), ids=PATHS)
def path(request: Any, launch_with: Any) -> Split:
    """A program for each sequence, or for each piece."""
    launch_with("gae.gae", "token_advantages.token_advantages", split=request.param)
    return request.param


def draw(batch: int, length: int, device: torch.device, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    tokens = {name: torch.randn(batch, length, device=device).to(dtype) for name in TOKENS}
    return tokens | {
        "sequence_rewards": torch.randn(batch, device=device).to(dtype),
        "bootstrap": torch.randn(batch, device=device).to(dtype),
    }


def mask_of(kind: str, batch: int, length: int, device: torch.device) -> Tensor | None:
    mask = make_mask(kind, (batch, length))
    return None if mask is None else mask.to(device)


def both(inputs: dict[str, Tensor], mask: Tensor | None, **options: Any) -> dict[str, Tensor]:
    """Every result of both ops."""
    shaped = fgrl.ops.token_advantages(**inputs, mask=mask, **(OPTIONS | options))
    shared = {name: value for name, value in options.items() if name in ("gamma", "lam", "cu_seqlens")}
    plain = fgrl.ops.gae(
        inputs["token_rewards"], inputs["values"], mask, bootstrap=inputs["bootstrap"], **({"gamma": 0.99} | shared)
    )
    return {**shaped._asdict(), **{f"gae {name}": tensor for name, tensor in plain._asdict().items()}}


def reference(inputs: dict[str, Tensor], mask: Tensor | None, **options: Any) -> dict[str, Tensor]:
    with fgrl.use_backend("reference"):
        return both(inputs, mask, **options)


def doubled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in inputs.items()}


def assert_right(ours: dict[str, Tensor], inputs: dict[str, Tensor], mask: Tensor | None, **options: Any) -> None:
    plain, exact = reference(inputs, mask, **options), reference(doubled(inputs), mask, **options)
    for name in ours:
        assert ours[name].dtype == plain[name].dtype, name
        if name != "moments":
            assert_as_accurate(ours[name], plain[name], exact[name], message=name)
    # Three sums over many tokens have a rounding error each, and the baseline's may be 0 by luck; but they are those of
    # the advantages that were returned.
    advantages = ours["advantages"].double() if mask is None else ours["advantages"][mask != 0].double()
    count = torch.tensor(float(advantages.numel()), dtype=torch.float64, device=advantages.device)
    expected = torch.stack([count, advantages.sum(), advantages.square().sum()])
    torch.testing.assert_close(ours["moments"], expected, rtol=1e-12, atol=1e-12)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_as_accurate_as_the_reference(length: int, kind: str, device: torch.device) -> None:
    inputs, mask = draw(3, length, device, torch.float32), mask_of(kind, 3, length, device)
    ours = both(inputs, mask)
    assert_right(ours, inputs, mask)
    for name in ("advantages", "returns", "kl", "gae advantages", "gae returns"):
        assert mask is None or (ours[name][~mask] == 0).all(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_dtype(dtype: torch.dtype, device: torch.device) -> None:
    inputs, mask = draw(2, 2 * BLOCK + 3, device, dtype), mask_of("holes", 2, 2 * BLOCK + 3, device)
    assert_right(both(inputs, mask), inputs, mask)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.0), (0.0, 0.5)], ids=str)
@pytest.mark.parametrize("size", [1e-2, 1e3, 1e6], ids=str)
def test_large_values_do_not_drown_small_rewards(gamma: float, lam: float, size: float, device: torch.device) -> None:
    """What passes from token to token is of the size of the values, and the advantages may be far smaller."""
    inputs = draw(2, 3 * BLOCK + 5, device, torch.float32)
    inputs["values"] = size * (1 + inputs["values"] / 100)
    inputs["bootstrap"] = size * (1 + inputs["bootstrap"] / 100)
    mask = mask_of("holes", 2, 3 * BLOCK + 5, device)
    assert_right(both(inputs, mask, gamma=gamma, lam=lam), inputs, mask, gamma=gamma, lam=lam)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lam_of_each_sequence(dtype: torch.dtype, device: torch.device) -> None:
    inputs, mask = draw(3, BLOCK + 5, device, dtype), mask_of("holes", 3, BLOCK + 5, device)
    lam = torch.tensor([0.0, 0.5, 1.0], dtype=dtype, device=device)
    assert_right(both(inputs, mask, lam=lam), inputs, mask, lam=lam)


@pytest.mark.parametrize("estimator", get_args(KLEstimator))
def test_kl_estimators(estimator: str, device: torch.device) -> None:
    inputs, mask = draw(2, 9, device, torch.float32), mask_of("holes", 2, 9, device)
    assert_right(both(inputs, mask, kl_estimator=estimator), inputs, mask, kl_estimator=estimator)


def test_k3_keeps_its_digits_near_zero(device: torch.device) -> None:
    """Where `expm1(-d) + d` cancels, which keeps no digit of the 5e-9 that it is for 1e-4."""
    size = torch.logspace(-6, 0.5, 27, device=device)
    logprobs = torch.cat([size, -size])[None]
    zeros = torch.zeros_like(logprobs)
    kl = fgrl.ops.token_advantages(None, zeros, logprobs, zeros, kl_estimator="k3").kl.double()
    x = -logprobs.double()
    series = sum(x**power / torch.arange(1, power + 1, device=device).double().prod() for power in range(2, 30))
    torch.testing.assert_close(kl, series, rtol=2e-6, atol=0)


@pytest.mark.parametrize("missing", ["token_rewards", "logprobs", "ref_logprobs", "sequence_rewards", "bootstrap"])
def test_what_is_not_given(missing: str, device: torch.device) -> None:
    inputs: dict[str, Any] = draw(2, BLOCK + 5, device)
    inputs[missing] = None
    options = OPTIONS | ({"kl_coef": 0.0} if "logprobs" in missing else {})
    ours = fgrl.ops.token_advantages(**inputs, **options)
    with fgrl.use_backend("reference"):
        expected = fgrl.ops.token_advantages(**inputs, **options)
    torch.testing.assert_close(tuple(ours), tuple(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("kind", ["holes", "masked-row", "all-masked"])
def test_nothing_under_the_mask_is_seen(kind: str, poison: float, device: torch.device) -> None:
    inputs, mask = draw(3, BLOCK + 5, device, torch.float32), mask_of(kind, 3, BLOCK + 5, device)
    assert mask is not None
    dirty = {name: poisoned(tensor, mask, poison) if name in TOKENS else tensor for name, tensor in inputs.items()}
    for name in ("sequence_rewards", "bootstrap"):
        dirty[name] = torch.where(mask.any(1), dirty[name], poison)
    assert_same(both(dirty, mask, reward_clip=(0.5, 2.0)), both(inputs, mask, reward_clip=(0.5, 2.0)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [*TOKENS, "sequence_rewards", "bootstrap"])
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.5, 0.0)], ids=str)
def test_results_are_finite_where_the_recursion_is(
    gamma: float, lam: float, name: str, bad: float, device: torch.device
) -> None:
    """A scan multiplies in another order, so an infinity may become a NaN, but neither reaches any other token."""
    inputs, mask = draw(3, BLOCK + 5, device, torch.float32), mask_of("holes", 3, BLOCK + 5, device)
    assert mask is not None
    at = (1,) if inputs[name].ndim == 1 else (1, BLOCK + 2)
    mask[1, BLOCK + 1 :] = torch.tensor([False, True, False, True])
    inputs[name][at] = bad
    ours, expected = (run(inputs, mask, gamma=gamma, lam=lam, reward_clip=None) for run in (both, reference))
    for key in ("advantages", "returns", "gae advantages", "gae returns"):
        is_finite = expected[key].isfinite()
        assert torch.equal(ours[key].isfinite(), is_finite), key
        torch.testing.assert_close(ours[key][is_finite], expected[key][is_finite], rtol=1e-4, atol=1e-4)
    assert not expected["advantages"][1].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_clip_bounds_an_infinite_reward_and_keeps_a_nan(bad: float, device: torch.device) -> None:
    inputs, position = draw(3, 2 * BLOCK + 5, device, torch.float32), BLOCK + 2
    inputs["token_rewards"][1, position] = bad
    clipped = fgrl.ops.token_advantages(**inputs, gamma=0.99, reward_clip=1.0).advantages
    assert clipped[1, : position + 1].isnan().all() == (bad != bad)
    assert clipped[1, position + 1 :].isfinite().all()
    assert clipped[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    "lengths",
    [
        (2 * BLOCK + 5, 0, 1, BLOCK, 3),
        (0, 0, BLOCK - 1, 0, 2 * BLOCK + 1, 0),
        (1,) * 20,
        (16, 5 * BLOCK + 3),
        (0, 0),
    ],
    ids=["mixed", "empty at both ends", "single tokens", "one long", "nothing"],
)
def test_packed_equals_padded(lengths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    batch, width = len(lengths), max(*lengths, 1)
    inputs, mask = draw(batch, width, device), mask_of("holes", batch, width, device)
    assert mask is not None
    mask &= torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]
    lam = torch.rand(batch, dtype=torch.float64, device=device)
    padded = both(inputs, mask, lam=lam)
    packed = both(
        {name: pack(tensor, lengths) if name in TOKENS else tensor for name, tensor in inputs.items()},
        pack(mask, lengths),
        lam=lam,
        cu_seqlens=offsets(lengths, dtype).to(device),
    )
    for name, tensor in packed.items():
        expected = padded[name] if name == "moments" else pack(padded[name], lengths)
        torch.testing.assert_close(tensor, expected, rtol=1e-11, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


def test_the_two_paths_agree(path: Split, launch_with: Any, device: torch.device) -> None:
    length = (2 * path.pieces_at_once + 1) * BLOCK + 5
    inputs, mask = draw(1, length, device), mask_of("holes", 1, length, device)
    ours = both(inputs, mask)
    other = path._replace(in_pieces=not path.in_pieces)
    launch_with("gae.gae", "token_advantages.token_advantages", split=other)
    torch.testing.assert_close(ours, both(inputs, mask), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(3, 100), (2, 2 * Split().max_block + 5)], ids=str)
def test_shipped_blocks(path: Split, launch_with: Any, shape: tuple[int, int], device: torch.device) -> None:
    """The shortest block and the longest, on both paths."""
    launch_with("gae.gae", "token_advantages.token_advantages", split=Split(in_pieces=path.in_pieces))
    inputs, mask = draw(*shape, device, torch.float32), mask_of("holes", *shape, device)
    assert_right(both(inputs, mask), inputs, mask)


def test_pieces_are_for_few_long_sequences(device: torch.device) -> None:
    split = Split()
    assert _advantages._takes_pieces(1, split.max_block + 1, split, device)
    assert not _advantages._takes_pieces(1, split.max_block, split, device)
    assert not _advantages._takes_pieces(10**6, 10**6, split, device)


@pytest.mark.parametrize("kind", ["none", "holes"])
def test_same_bits_twice(kind: str, device: torch.device) -> None:
    inputs, mask = draw(3, 2 * BLOCK + 5, device, torch.float32), mask_of(kind, 3, 2 * BLOCK + 5, device)
    assert_same(both(inputs, mask), both(inputs, mask))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_masks_of_every_dtype(dtype: torch.dtype, device: torch.device) -> None:
    inputs, mask = draw(2, BLOCK + 5, device, torch.float32), mask_of("holes", 2, BLOCK + 5, device)
    assert mask is not None
    assert_same(both(inputs, mask.to(dtype)), both(inputs, mask))


def every_other(tensor: Tensor) -> Tensor:
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), 99, device=tensor.device).to(tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


def in_the_middle(tensor: Tensor) -> Tensor:
    """Contiguous, and at no multiple of anything in memory."""
    wide = torch.full((tensor.numel() + 8,), 99, device=tensor.device).to(tensor.dtype)
    wide[3 : 3 + tensor.numel()] = tensor.reshape(-1)
    return wide[3 : 3 + tensor.numel()].view(tensor.shape)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "lay", [every_other, in_the_middle, lambda x: x.t().contiguous().t() if x.ndim == 2 else every_other(x)]
)
def test_memory_layouts(lay: Any, packed: bool, device: torch.device) -> None:
    lengths = (BLOCK + 3, 7)
    inputs, mask = draw(2, BLOCK + 3, device, torch.float32), mask_of("tails", 2, BLOCK + 3, device)
    assert mask is not None
    lam, options = torch.rand(2, device=device), {}
    if packed:
        inputs = {name: pack(tensor, lengths) if name in TOKENS else tensor for name, tensor in inputs.items()}
        mask, options = pack(mask, lengths), {"cu_seqlens": offsets(lengths).to(device)}
    expected = both(inputs, mask, lam=lam, **options)
    laid = {name: lay(tensor) for name, tensor in options.items()}
    ours = both({name: lay(tensor) for name, tensor in inputs.items()}, lay(mask), lam=lay(lam), **laid)
    assert_same(ours, expected)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)], ids=str)
def test_empty_batches(shape: tuple[int, int], device: torch.device) -> None:
    results = both(draw(*shape, device), torch.ones(shape, dtype=torch.bool, device=device))
    assert results.pop("moments").tolist() == [0, 0, 0]
    assert all(tensor.shape == shape for tensor in results.values())


def test_as_operators(device: torch.device) -> None:
    inputs, mask = draw(2, 9, device, torch.float32), mask_of("holes", 2, 9, device)
    tokens = [inputs[name] for name in TOKENS]
    lam, sequence = torch.rand(2, device=device), [inputs["sequence_rewards"], inputs["bootstrap"]]
    torch.library.opcheck(torch.ops.fgrl.gae.default, (*tokens[:2], mask, sequence[1], lam, None, 0.9, 1.0))
    torch.library.opcheck(
        torch.ops.fgrl.token_advantages.default,
        (*tokens, mask, *sequence, lam, None, 0.5, -1.0, 1.0, 0.1, 2, 0.9, 1.0),
    )
