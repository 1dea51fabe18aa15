"""`linear_kl` and `linear_topk_kl`: values against scalar loops, gradients against PyTorch, masks, chunks, errors."""

from __future__ import annotations

import math
from typing import Any

import kl_oracles
import numpy as np
import pytest
import torch
from numerics import POISONS, assert_as_accurate, assert_equals_oracle, gradients, leaf, offsets
from torch import Tensor

import fgrl
from fgrl import backend

DIVERGENCES = ("forward", "reverse", "jsd")
TAILS = ("bucket", "renormalize", "ignore")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "softcap, beta": {"temperature": 1.5, "softcap": 3.0, "beta": 0.2},
}
CPU = torch.device("cpu")
IS_FUSED = backend.resolve("linear_kl", CPU) != "reference"
pytestmark = pytest.mark.usefixtures("each_backend")

N, D, E, V, K = 7, 5, 3, 33, 4


def draw(dtype: torch.dtype = torch.float64, vocabulary: int = V) -> dict[str, Tensor]:
    """The student's and the teacher's tensors; their hidden sizes differ."""
    return {
        "hidden": torch.randn(N, D).to(dtype),
        "weight": torch.randn(vocabulary, D).to(dtype),
        "bias": torch.randn(vocabulary).to(dtype),
        "teacher_hidden": torch.randn(N, E).to(dtype),
        "teacher_weight": torch.randn(vocabulary, E).to(dtype),
        "teacher_bias": torch.randn(vocabulary).to(dtype),
    }


STUDENT = ("hidden", "weight", "bias")


def topk(inputs: dict[str, Tensor], count: int = K) -> dict[str, Tensor]:
    """The same with the teacher's most likely tokens instead of the teacher."""
    logits = inputs["teacher_hidden"] @ inputs["teacher_weight"].T + inputs["teacher_bias"]
    logprobs, ids = logits.log_softmax(-1).topk(count)
    return {**{name: inputs[name] for name in STUDENT}, "teacher_ids": ids, "teacher_logprobs": logprobs}


def run(op: str, inputs: dict[str, Tensor], **options: Any) -> Any:
    return getattr(fgrl.ops, op)(**inputs, **options)


def numpy(inputs: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


MASK = torch.tensor([1, 0, 1, 1, 0, 1, 1]) != 0
CASES = [("linear_kl", None), *[("linear_topk_kl", tail) for tail in TAILS]]
each_case = pytest.mark.parametrize(
    ("op", "tail"), CASES, ids=["linear_kl", *[f"linear_topk_kl-{tail}" for tail in TAILS]]
)
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def of_case(op: str, tail: str | None, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return (inputs, {}) if op == "linear_kl" else (topk(inputs), {"tail": tail})


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@each_divergence
@each_case
def test_values_are_the_oracle_s(op: str, tail: str | None, divergence: str, options: dict[str, Any]) -> None:
    inputs, case = of_case(op, tail, draw())
    if op == "linear_topk_kl":
        inputs["teacher_logprobs"][2, 1:] = -math.inf
        inputs["teacher_ids"][2, 1:] = -7
    elif "softcap" in options:
        case = {"teacher_softcap": 2.0}
    arrays = numpy(inputs)
    if op == "linear_topk_kl":
        arrays["ids"], arrays["logprobs"] = arrays.pop("teacher_ids"), arrays.pop("teacher_logprobs")
    scalars = {"beta": 0.5, **options, **case}
    oracle = getattr(kl_oracles, op)(**arrays, valid=MASK.tolist(), kind=divergence, **scalars)
    loss, kl = run(op, inputs, mask=MASK, divergence=divergence, **options, **case)
    assert_equals_oracle(kl, oracle)
    assert_equals_oracle(loss, oracle.sum() / MASK.sum().item())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@each_divergence
@each_case
def test_gradients_are_those_of_the_loss(op: str, tail: str | None, divergence: str, options: dict[str, Any]) -> None:
    """Differences of fp64 values, so that the gradient does not vouch for itself."""
    inputs, case = of_case(op, tail, draw())

    def loss(**student: Tensor) -> Tensor:
        return run(op, {**inputs, **student}, mask=MASK, divergence=divergence, **options, **case).loss

    student = {name: inputs[name] for name in STUDENT}
    _, found = gradients(loss, student)
    for name, tensor in student.items():
        direction = torch.randn_like(tensor)
        step = 1e-5
        high, low = (loss(**{**student, name: tensor + sign * step * direction}) for sign in (1, -1))
        expected = (high - low) / (2 * step)
        torch.testing.assert_close((found[name] * direction).sum(), expected, rtol=1e-6, atol=1e-8, msg=name)


@each_divergence
@each_case
def test_a_student_that_is_the_teacher(op: str, tail: str | None, divergence: str) -> None:
    inputs = draw(torch.float32)
    inputs |= {f"teacher_{name}": inputs[name].clone() for name in STUDENT}
    inputs, case = of_case(op, tail, inputs)
    loss, found = gradients(
        lambda **student: run(op, {**inputs, **student}, divergence=divergence, **case).loss,
        {name: inputs[name] for name in STUDENT},
    )
    assert abs(loss) < 1e-6
    assert tail == "ignore" or all(grad.abs().max() < 1e-5 for grad in found.values())


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@each_case
def test_masked_rows_are_never_seen(op: str, tail: str | None, poison: float) -> None:
    inputs, case = of_case(op, tail, draw(torch.float32))
    plain = run(op, inputs, mask=MASK, **case)
    poisoned = {
        name: torch.where(MASK[:, None], tensor, poison) if name in ("hidden", "teacher_hidden") else tensor
        for name, tensor in inputs.items()
    }
    if op == "linear_topk_kl":
        poisoned["teacher_ids"] = torch.where(MASK[:, None], inputs["teacher_ids"], -99)
        poisoned["teacher_logprobs"] = torch.where(MASK[:, None], inputs["teacher_logprobs"], poison)
    leaves = {name: leaf(poisoned[name]) for name in STUDENT}
    loss, kl = run(op, {**poisoned, **leaves}, mask=MASK.long(), **case)
    loss.backward()
    assert torch.equal(kl, plain.kl)
    assert torch.equal(loss.detach(), plain.loss)
    assert (kl[~MASK] == 0).all()
    assert (leaves["hidden"].grad[~MASK] == 0).all()
    assert all(torch.isfinite(tensor.grad).all() for tensor in leaves.values())


@each_case
def test_a_fully_masked_batch(op: str, tail: str | None) -> None:
    inputs, case = of_case(op, tail, draw(torch.float32))
    loss, found = gradients(
        lambda **student: run(op, {**inputs, **student}, mask=MASK & False, **case).loss,
        {name: inputs[name] for name in STUDENT},
    )
    assert loss == 0
    assert all((grad == 0).all() for grad in found.values())


@pytest.mark.parametrize("aggregation", ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean"])
@pytest.mark.parametrize("normalizer", [None, 3.0, torch.tensor(5.0)], ids=str)
@each_case
def test_aggregation_is_that_of_the_losses(op: str, tail: str | None, normalizer: Any, aggregation: Any) -> None:
    inputs, case = of_case(op, tail, draw())
    options = {"aggregation": aggregation, "normalizer": normalizer, "cu_seqlens": offsets([3, 4])}
    loss, found = gradients(
        lambda hidden: run(op, {**inputs, "hidden": hidden}, mask=MASK, **options, **case).loss,
        {"hidden": inputs["hidden"]},
    )

    def expected(hidden: Tensor) -> Tensor:
        """The divergence of each token as an entropy bonus of weight -1."""
        with fgrl.use_backend("reference"):
            ones = [run(op, {**inputs, "hidden": hidden}, mask=MASK & (torch.arange(N) == n), **case) for n in range(N)]
        config = fgrl.PPOLossConfig(entropy_coef=-1.0, aggregation=aggregation)
        rest = {name: value for name, value in options.items() if name != "aggregation"}
        kl, zeros = torch.stack([one.loss for one in ones]), torch.zeros(N)
        return fgrl.reference.ppo_loss(zeros, None, zeros, MASK, entropy=kl, config=config, **rest).loss

    value, grads = gradients(expected, {"hidden": inputs["hidden"]})
    torch.testing.assert_close(loss, value)
    torch.testing.assert_close(found, grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocabulary", [1, 7, 4099, 50257])
@each_divergence
def test_as_accurate_as_pytorch(divergence: Any, vocabulary: int, dtype: torch.dtype) -> None:
    inputs = draw(dtype, vocabulary)
    options: dict[str, Any] = {"divergence": divergence, "temperature": 0.8, "softcap": 8.0}

    def eager(**student: Tensor) -> Tensor:
        logits = [
            tensors["hidden"] @ tensors["weight"].T + tensors["bias"]
            for tensors in (student, {name: inputs[f"teacher_{name}"] for name in STUDENT})
        ]
        ours = (8 * torch.tanh(logits[0] / 8) / 0.8).log_softmax(-1)
        theirs = (logits[1] / 0.8).log_softmax(-1)
        if divergence == "jsd":
            both = torch.logaddexp(ours, theirs) - math.log(2)
            return 0.5 * ((theirs.exp() * (theirs - both)).sum(-1) + (ours.exp() * (ours - both)).sum(-1)).mean()
        first, second = (ours, theirs) if divergence == "reverse" else (theirs, ours)
        return (first.exp() * (first - second)).sum(-1).mean()

    def fused(inputs: dict[str, Tensor]) -> Any:
        return gradients(
            lambda **student: run("linear_kl", {**inputs, **student}, **options).loss,
            {name: inputs[name] for name in STUDENT},
        )

    mine, plain = fused(inputs), gradients(eager, {name: inputs[name] for name in STUDENT})
    with fgrl.use_backend("reference"):
        exact = fused({name: tensor.double() for name, tensor in inputs.items()})
    assert_as_accurate(mine[0], plain[0], exact[0], message="loss")
    for name in STUDENT:
        assert_as_accurate(mine[1][name], plain[1][name], exact[1][name], message=name)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
@each_divergence
@each_case
def test_any_chunks_give_the_same(op: str, tail: str | None, divergence: str, rows: int) -> None:
    inputs, case = of_case(op, tail, draw(torch.float32))
    case |= {"divergence": divergence}

    def result(**options: Any) -> Any:
        return gradients(
            lambda **student: run(op, {**inputs, **student}, mask=MASK, **case, **options).loss,
            {name: inputs[name] for name in STUDENT},
        )

    torch.testing.assert_close(result(chunk_tokens=rows), result(), rtol=1e-4, atol=1e-6)


@each_case
def test_impossible_tokens(op: str, tail: str | None) -> None:
    """A bias of -inf on both sides, as it masks the padding of a vocabulary, changes nothing."""
    inputs = draw()
    small, case = of_case(
        op,
        tail,
        {name: tensor[:-3] if "weight" in name or "bias" in name else tensor for name, tensor in inputs.items()},
    )
    for name in ("bias", "teacher_bias"):
        inputs[name][-3:] = -math.inf
    inputs, _ = of_case(op, tail, inputs)
    for divergence in DIVERGENCES:
        results = []
        for tensors in (inputs, small):
            hidden = leaf(tensors["hidden"])
            loss = run(op, {**tensors, "hidden": hidden}, divergence=divergence, **case).loss
            results.append((loss.detach(), *torch.autograd.grad(loss, hidden)))
        torch.testing.assert_close(*results)


@each_divergence
def test_all_tokens_of_a_teacher_are_the_teacher(divergence: str) -> None:
    inputs = draw()
    listed = topk(inputs, V)
    shuffled = torch.argsort(torch.rand(N, V))
    for name in ("teacher_ids", "teacher_logprobs"):
        listed[name] = listed[name].gather(1, shuffled)
    whole = gradients(
        lambda hidden: run("linear_kl", {**inputs, "hidden": hidden}, divergence=divergence).loss,
        {"hidden": inputs["hidden"]},
    )
    for tail in TAILS:
        ours = gradients(
            lambda hidden, tail=tail: (
                run("linear_topk_kl", {**listed, "hidden": hidden}, divergence=divergence, tail=tail).loss
            ),
            {"hidden": inputs["hidden"]},
        )
        torch.testing.assert_close(ours, whole)


def test_the_tail_of_a_confident_student_is_exact() -> None:
    """1 - sum of its probabilities is 0 in fp32; the tail is what all other tokens have."""
    bias = torch.full((V,), -30.0)
    bias[0] = 0
    kl = fgrl.ops.linear_topk_kl(
        torch.zeros(1, D),
        torch.zeros(V, D),
        torch.zeros(1, 1).long(),
        torch.tensor([[math.log(0.9)]]),
        bias=bias,
        divergence="forward",
    ).kl
    tail = math.log(V - 1) - 30
    assert kl.item() == pytest.approx(0.9 * math.log(0.9) + 0.1 * (math.log(0.1) - tail), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_case
def test_autocast_rounds_operands(op: str, tail: str | None, dtype: torch.dtype) -> None:
    inputs, case = of_case(op, tail, draw(torch.float32))
    rounded = {
        name: tensor.to(dtype).double() if name.endswith(("hidden", "weight")) else tensor.double()
        for name, tensor in inputs.items()
        if name != "teacher_ids"
    }
    rounded |= {name: tensor for name, tensor in inputs.items() if name == "teacher_ids"}
    leaves = {name: leaf(inputs[name]) for name in STUDENT}
    with torch.autocast("cpu", dtype):
        loss, kl = run(op, {**inputs, **leaves}, **case)
    loss.backward()
    torch.testing.assert_close(kl.double(), run(op, rounded, **case).kl, rtol=1e-4, atol=1e-5)
    assert all(tensor.grad.dtype == torch.float32 for tensor in leaves.values())


ERRORS = [
    ("linear_kl", {"divergence": "both"}, "divergence is 'both'"),
    ("linear_kl", {"beta": 0.0, "divergence": "jsd"}, "beta is 0.0"),
    ("linear_kl", {"beta": "1"}, "beta is '1'"),
    ("linear_kl", {"temperature": 0}, "temperature is 0"),
    ("linear_kl", {"teacher_softcap": -1.0}, "teacher_softcap is -1.0"),
    ("linear_kl", {"aggregation": "mean"}, "aggregation is 'mean'"),
    ("linear_kl", {"aggregation": "seq-mean-token-sum"}, "cu_seqlens is None"),
    ("linear_kl", {"teacher_weight": torch.zeros(V + 1, E), "teacher_bias": None}, "teacher_weight has shape"),
    ("linear_kl", {"teacher_hidden": torch.zeros(N + 1, E)}, "teacher_hidden has shape"),
    ("linear_kl", {"teacher_hidden": torch.zeros(N, E).double()}, "teacher_hidden has dtype"),
    ("linear_kl", {"mask": torch.full((N,), 2)}, "mask has values other than"),
    ("linear_topk_kl", {"tail": "cut"}, "tail is 'cut'"),
    ("linear_topk_kl", {"teacher_ids": torch.zeros(N, K)}, "teacher_ids has dtype"),
    ("linear_topk_kl", {"teacher_ids": torch.zeros(N, K + 1).long()}, "teacher_logprobs has shape"),
    ("linear_topk_kl", {"teacher_ids": torch.full((N, K), V)}, "teacher_ids has ids outside the vocabulary"),
    ("linear_topk_kl", {"teacher_logprobs": torch.full((N, K), 0.5)}, "teacher_logprobs has entries above 0 or NaN"),
]


@pytest.mark.parametrize(("op", "change", "message"), ERRORS, ids=[message for *_, message in ERRORS])
def test_bad_input_is_named(op: str, change: dict[str, Any], message: str) -> None:
    inputs = draw(torch.float32)
    inputs = inputs if op == "linear_kl" else topk(inputs)
    with pytest.raises(ValueError, match=f"^{message}"):
        run(op, {**inputs, **change})


@pytest.mark.skipif(not IS_FUSED, reason="nothing fused runs here")
@each_case
def test_four_products_and_none_for_masked_rows(op: str, tail: str | None) -> None:
    inputs, case = of_case(op, tail, draw(torch.float32))
    leaves = {name: leaf(inputs[name]) for name in STUDENT}
    activities = [torch.profiler.ProfilerActivity.CPU]
    with fgrl.use_backend("auto"), torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        run(op, {**inputs, **leaves}, mask=MASK, **case).loss.backward()
    products = [e.input_shapes[:2] for e in profile.events() if e.name in ("aten::mm", "aten::addmm", "fgrl::matmul")]
    forward = 2 if op == "linear_kl" else 0 if tail == "renormalize" else 1  # which gathers the K rows it needs
    assert len(products) == (forward and forward + 2)
    assert all(N not in [size for shape in shapes for size in shape] for shapes in products)
    with fgrl.use_backend("auto"), torch.no_grad(), torch.profiler.profile(activities=activities) as profile:
        run(op, inputs, mask=MASK, **case)
    count = sum(event.name in ("aten::mm", "aten::addmm", "fgrl::matmul") for event in profile.events())
    assert count == forward


@each_case
def test_layouts_and_backward_twice(op: str, tail: str | None) -> None:
    inputs, case = of_case(op, tail, draw(torch.float32))
    rows = {
        name: tensor[:6].reshape(2, 3, *tensor.shape[1:])
        for name, tensor in inputs.items()
        if name.endswith(("hidden", "ids", "logprobs"))
    }
    packed = run(op, {**inputs, **{name: tensor[:6] for name, tensor in inputs.items() if name in rows}}, **case)
    hidden = leaf(rows["hidden"])
    padded = run(op, {**inputs, **rows, "hidden": hidden}, **case)
    assert torch.equal(padded.kl.reshape(-1), packed.kl)
    (first,) = torch.autograd.grad(padded.loss, hidden, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(padded.loss * 3, hidden)
    torch.testing.assert_close(second, 3 * first)
    assert np.isfinite(first.numpy()).all()
