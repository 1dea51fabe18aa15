"""`linear_logprobs(support_ids=)`: the distribution over the tokens that a sampler had kept."""

from __future__ import annotations

import re
from typing import Any

import oracles
import pytest
import torch
from numerics import POISONS, assert_as_accurate, assert_equals_oracle, gradients, make_mask
from torch import Tensor

import fgrl
from fgrl.extension import interprets_kernels

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap, then temperature": {"softcap": 2.0, "temperature": 0.7},
}


def draw_support(targets: Tensor, vocabulary: int, count: int) -> Tensor:
    """`[*, count]` ids without repetition, the target somewhere among them; every other row has -1 in some places."""
    rows = []
    for index, target in enumerate(targets.reshape(-1).tolist()):
        others = [token for token in torch.randperm(vocabulary).tolist() if token != target][: count - 1]
        row = [target, *others] + [-1] * (count - 1 - len(others))
        row = [row[place] for place in torch.randperm(count)]
        rows.append(
            [-1 if token != target and index % 2 and place % 3 == 0 else token for place, token in enumerate(row)]
        )
    return torch.tensor(rows, dtype=torch.int64).reshape(*targets.shape, count)


def draw(
    shape: tuple[int, ...], width: int, vocabulary: int, count: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    targets = torch.randint(vocabulary, shape)
    return {
        "hidden": torch.randn(*shape, width, dtype=dtype),
        "weight": torch.randn(vocabulary, width, dtype=dtype),
        "targets": targets,
        "bias": torch.randn(vocabulary, dtype=dtype),
        "support_ids": draw_support(targets, vocabulary, count),
    }


def total(outputs: tuple[Tensor, Tensor]) -> Tensor:
    """A scalar whose gradient is different at each entry of both outputs."""
    logprobs, entropy = outputs
    steps = torch.arange(1, logprobs.numel() + 1, dtype=logprobs.dtype).reshape(logprobs.shape) / logprobs.numel()
    return (logprobs * steps).sum() + (entropy * steps.flip(0)).sum()


def run(inputs: dict[str, Tensor], **options: Any) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Log-probabilities and entropies, and the gradients of their `total`."""
    leaves = {name: tensor for name, tensor in inputs.items() if tensor.is_floating_point()}
    rest = {name: tensor for name, tensor in inputs.items() if name not in leaves}
    found: list[Any] = []

    def loss(**leaves: Tensor) -> Tensor:
        found.append(fgrl.ops.linear_logprobs(**leaves, **rest, **options, return_entropy=True))
        return total(found[0])

    grads = gradients(loss, leaves)[1]
    return found[0], grads


def oracle(inputs: dict[str, Tensor], **options: Any) -> tuple[Any, Any]:
    support = [[token for token in row if token >= 0] for row in inputs["support_ids"].tolist()]
    hidden, weight, bias = (inputs[name].detach().numpy() for name in ("hidden", "weight", "bias"))
    return oracles.linear_logprobs(hidden, weight, inputs["targets"].tolist(), bias, support=support, **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("count", [1, 2, 5, 13])
def test_equals_the_oracle(count: int, options: dict[str, Any]) -> None:
    inputs = draw((6,), 7, 13, count)
    (logprobs, entropy), grads = run(inputs, **options)
    expected = oracle(inputs, **options)
    assert_equals_oracle(logprobs, expected[0], "logprobs")
    assert_equals_oracle(entropy, expected[1], "entropy")
    for name in ("hidden", "weight", "bias"):

        def at(point: Any, name: str = name) -> float:
            now = inputs | {name: torch.as_tensor(point).reshape(inputs[name].shape)}
            return float(total(tuple(torch.as_tensor(output) for output in oracle(now, **options))))  # type: ignore[arg-type]

        difference = oracles.central_difference(at, oracles.flat(inputs[name]))
        torch.testing.assert_close(grads[name].reshape(-1), torch.as_tensor(difference), rtol=1e-6, atol=1e-7)


def test_the_whole_vocabulary_is_no_restriction() -> None:
    inputs = draw((9,), 7, 13, 4)
    inputs["support_ids"] = torch.arange(13).expand(9, 13)
    restricted, grads = run(inputs)
    del inputs["support_ids"]
    plain, expected = run(inputs)
    torch.testing.assert_close(restricted, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_tokens", [None, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 50])
def test_as_accurate_as_pytorch(count: int, dtype: torch.dtype, chunk_tokens: int | None) -> None:
    inputs = draw((40,), 33, 997, count, dtype)
    inputs["weight"] /= 33**0.5
    ours, grads = run(inputs, chunk_tokens=chunk_tokens)
    with fgrl.use_backend("reference"):
        plain, plain_grads = run(inputs)
        exact, exact_grads = run({k: v.double() if v.is_floating_point() else v for k, v in inputs.items()})
    for name, mine, baseline, right in zip(("logprobs", "entropy"), ours, plain, exact, strict=True):
        assert mine.dtype == baseline.dtype
        assert_as_accurate(mine, baseline, right, message=name)
    for name, grad in grads.items():
        assert grad.dtype == dtype
        assert_as_accurate(grad, plain_grads[name], exact_grads[name], message=name)


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("kind", ["holes", "masked-row", "one-token", "all-masked"])
def test_nothing_under_the_mask_is_seen(kind: str, poison: float) -> None:
    inputs = draw((3, 8), 5, 11, 4)
    mask = make_mask(kind, (3, 8))
    assert mask is not None
    (logprobs, entropy), grads = run(inputs, mask=mask)
    assert (logprobs[~mask] == 0).all()
    assert (entropy[~mask] == 0).all()
    assert (grads["hidden"][~mask] == 0).all()
    inputs["hidden"][~mask] = poison
    inputs["targets"][~mask] = -100
    inputs["support_ids"][~mask] = 2**40
    again, grads_again = run(inputs, mask=mask)
    assert torch.equal(again[0], logprobs)
    assert torch.equal(again[1], entropy)
    assert all(torch.equal(grads_again[name], grad) for name, grad in grads.items())


def test_packed_equals_padded_and_dtypes_of_ids() -> None:
    inputs = draw((2, 5), 4, 9, 3)
    (padded, _), _ = run(inputs)
    flat = {n: t.flatten(0, 1) if n in ("hidden", "targets", "support_ids") else t for n, t in inputs.items()}
    flat["support_ids"] = flat["support_ids"].int()
    assert torch.equal(run(flat)[0][0], padded.reshape(-1))


def test_no_rows() -> None:
    (logprobs, _), grads = run(draw((0,), 4, 9, 3))
    assert logprobs.shape == (0,)
    assert (grads["weight"] == 0).all()


def test_the_ratio_is_about_what_was_sampled_from() -> None:
    """Two policies, samples of the first by top-k: only within its support do the weights average to 1."""
    torch.manual_seed(0)
    weight = torch.randn(50, 6, dtype=torch.float64)
    old, new = torch.randn(2, 6, dtype=torch.float64) * 0.7
    support = (weight @ old).topk(5).indices
    hidden = torch.stack([old, new]).repeat_interleave(5, 0)
    kept = fgrl.ops.linear_logprobs(hidden, weight, support.repeat(2), support_ids=support.expand(10, 5)).reshape(2, 5)
    whole = fgrl.ops.linear_logprobs(hidden, weight, support.repeat(2)).reshape(2, 5)
    probabilities = kept[0].exp()  # of the samples
    assert (probabilities * (kept[1] - kept[0]).exp()).sum().item() == pytest.approx(1, abs=1e-12)
    assert abs((probabilities * (whole[1] - whole[0]).exp()).sum().item() - 1) > 0.05


def test_memory_is_that_of_the_listed_rows() -> None:
    if interprets_kernels():
        pytest.skip("nothing of this is a kernel")
    inputs = draw((64,), 16, 4096, 3, torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        fgrl.ops.linear_logprobs(**inputs)
    sizes = [event.cpu_memory_usage for event in profile.events()]
    assert max(sizes) < 64 * 4096  # a quarter of the logits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"support_ids": torch.zeros(3, dtype=torch.long)}, "support_ids has shape [3]; it must be [3, 'K'] with K"),
        ({"support_ids": torch.zeros(3, 0, dtype=torch.long)}, "support_ids has shape [3, 0]; it must be [3, 'K']"),
        (
            {"support_ids": torch.zeros(2, 2, dtype=torch.long)},
            "support_ids has shape [2, 2]; it must have [3, 2] like targets but for K",
        ),
        ({"support_ids": [[0, 1]] * 3}, "support_ids has shape none, a list; it must be"),
        ({"support_ids": torch.zeros(3, 2)}, "support_ids has dtype torch.float32; it must be int32 or int64"),
        (
            {"support_ids": torch.tensor([[0, 9]] * 3)},
            "support_ids has ids outside the vocabulary; they must be in [0, 9",
        ),
        ({"support_ids": torch.tensor([[0, -2]] * 3)}, "support_ids has ids outside the vocabulary; they must be in"),
        ({"support_ids": torch.tensor([[0, 1, 1]] * 3)}, "support_ids has an id twice in a row; it must be there once"),
        ({"targets": torch.tensor([0, 1, 2])}, "targets has tokens that are not in support_ids; they must be"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)
def test_bad_input_is_a_sentence(change: dict[str, Any], message: str) -> None:
    inputs: dict[str, Any] = {
        "hidden": torch.zeros(3, 2),
        "weight": torch.zeros(9, 2),
        "targets": torch.zeros(3).long(),
    }
    inputs |= {"support_ids": torch.tensor([[0, 1, -1]] * 3)}
    fgrl.ops.linear_logprobs(**inputs)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        fgrl.ops.linear_logprobs(**(inputs | change))
    if message.startswith(("support_ids has an id", "targets has")):
        with fgrl.checks("off"):
            fgrl.ops.linear_logprobs(**(inputs | change))
