"""What the `linear_*` ops promise beyond their numbers: how many products, how much memory, whatever the chunks are."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from numerics import assert_as_accurate, gradients, leaf
from torch import Tensor

import fgrl
from fgrl import backend
from fgrl.ops import PPOLossConfig

IS_FUSED = backend.resolve("linear_logprobs", torch.device("cpu")) != "reference"
pytestmark = [
    pytest.mark.skipif(not IS_FUSED, reason="nothing fused runs here"),
    pytest.mark.usefixtures("each_cpu_capability"),
]

PRODUCTS = ("aten::mm", "aten::addmm", "fgrl::matmul")
TRAINED = ("hidden", "weight", "bias")
CONFIG = PPOLossConfig(entropy_coef=0.1)

# Vocabulary, width, rows: one row, and more than a tile of the product has; a vocabulary below a vector and one of
# whole vectors; of SmolLM, GPT-2 (odd) and Qwen; the widths of SmolLM and of an 8B model.
SIZES = {
    "7x576x9": (7, 576, 9),
    "128x4096x5": (128, 4096, 5),
    "49152x32x4": (49152, 32, 4),
    "50257x32x3": (50257, 32, 3),
    "151936x32x2": (151936, 32, 2),
    "4099x576x1": (4099, 576, 1),
    "4099x576x17": (4099, 576, 17),
}
if backend.interprets_kernels():  # a block of a row takes milliseconds there
    SIZES = {name: size for name, size in SIZES.items() if size[0] * size[2] < 10_000}
OPTIONS: dict[str, dict[str, float]] = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "hot, softcap": {"temperature": 2.0, "softcap": 30.0},
}


def draw(vocabulary: int, width: int, rows: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    hidden = torch.randn(rows, width, dtype=dtype)
    weight = (torch.randn(vocabulary, width) * 3 / width**0.5).to(dtype)
    targets = torch.randint(vocabulary, (rows,))
    targets[0] = vocabulary - 1
    return {"hidden": hidden, "weight": weight, "bias": torch.randn(vocabulary).to(dtype), "targets": targets}


def tokens(rows: int) -> dict[str, Tensor]:
    return {"old_logprobs": torch.randn(rows) - 8, "advantages": torch.randn(rows)}


def eager(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, **options: float) -> tuple[Tensor, Tensor]:
    """Logits, log-softmax, gather, as a user writes it, in the dtype of the inputs."""
    logits = hidden @ weight.T + bias
    if "softcap" in options:
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    log_softmax = (logits / options.get("temperature", 1.0)).log_softmax(-1)
    return log_softmax.gather(1, targets[:, None])[:, 0], -(log_softmax.exp() * log_softmax).sum(-1)


def doubled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_logprobs_and_entropy_are_as_accurate_as_pytorch(
    size: tuple[int, int, int], options: dict[str, float], dtype: torch.dtype
) -> None:
    inputs = draw(*size, dtype)
    grads = torch.randn(2, size[2])

    def run(function: Any, inputs: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        outputs: list[Tensor] = []

        def total(**leaves: Tensor) -> Tensor:
            outputs.extend(function(**leaves, targets=inputs["targets"], **options))
            return sum((output * grad).sum() for output, grad in zip(outputs, grads, strict=True))

        found = gradients(total, {name: inputs[name] for name in TRAINED})[1]
        return [output.detach() for output in outputs], found

    def ours(**arguments: Any) -> Any:
        return fgrl.ops.linear_logprobs(**arguments, return_entropy=True)

    mine, plain = run(ours, inputs), run(eager, inputs)
    with fgrl.use_backend("reference"):
        exact = run(ours, doubled(inputs))
    for name, *results in zip(("logprobs", "entropy"), mine[0], plain[0], exact[0], strict=True):
        assert_as_accurate(*results, message=name)
    for name in TRAINED:
        assert_as_accurate(mine[1][name], plain[1][name], exact[1][name], message=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_loss_is_as_accurate_as_pytorch(
    size: tuple[int, int, int], options: dict[str, float], dtype: torch.dtype
) -> None:
    inputs, constants = draw(*size, dtype), tokens(size[2])

    def plain(**leaves: Tensor) -> Tensor:
        logprobs, entropy = eager(**leaves, targets=inputs["targets"], **options)
        return fgrl.reference.ppo_loss(logprobs, **constants, entropy=entropy, config=CONFIG).loss

    def run(inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        def loss(**leaves: Tensor) -> Tensor:
            result = fgrl.ops.linear_ppo_loss(
                **leaves, targets=inputs["targets"], **constants, **options, config=CONFIG
            )
            return result.loss

        return gradients(loss, {name: inputs[name] for name in TRAINED})

    mine, baseline = run(inputs), gradients(plain, {name: inputs[name] for name in TRAINED})
    with fgrl.use_backend("reference"):
        exact = run(doubled(inputs))
    assert_as_accurate(mine[0], baseline[0], exact[0], message="loss")
    for name in TRAINED:
        assert_as_accurate(mine[1][name], baseline[1][name], exact[1][name], message=name)


def both(inputs: dict[str, Tensor], constants: dict[str, Tensor], mask: Tensor | None = None) -> list[Tensor]:
    """All outputs and gradients of both ops."""
    found = []
    for op in ("linear_logprobs", "linear_ppo_loss"):
        leaves = {name: leaf(inputs[name]) for name in TRAINED}
        if op == "linear_logprobs":
            outputs = fgrl.ops.linear_logprobs(**leaves, targets=inputs["targets"], mask=mask, return_entropy=True)
            loss = (outputs[0] * constants["advantages"]).sum() + outputs[1].sum()
        else:
            result = fgrl.ops.linear_ppo_loss(
                **leaves, targets=inputs["targets"], **constants, mask=mask, config=CONFIG
            )
            loss, outputs = result.loss, (result.loss, result.logprobs)
        loss.backward()
        found += [*outputs, *(tensor.grad for tensor in leaves.values())]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 6, 7, 8])
@pytest.mark.parametrize("kind", ["all", "some", "one", "none"])
def test_any_chunks_give_the_same(
    kind: str, rows_at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that the head's gradient is summed in fp32: rounded to bf16 seven times, it would be off by more."""
    inputs, constants = draw(33, 16, 7, dtype), tokens(7)
    mask = (
        None if kind == "all" else torch.tensor([kind == "some" or False, False, kind != "none", *[kind == "some"] * 4])
    )
    expected = both(inputs, constants, mask)
    monkeypatch.setenv("FGRL_CHUNK_MB", str(48 * 4 * rows_at_once / 2**20))
    for ours, whole in zip(both(inputs, constants, mask), expected, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-6)


@pytest.mark.parametrize("setting", ["0", "-1", "much", "nan"])
def test_a_budget_that_is_none_is_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGRL_CHUNK_MB", setting)
    with pytest.raises(ValueError, match="FGRL_CHUNK_MB"):
        fgrl.ops.linear_logprobs(torch.zeros(2, 3), torch.zeros(8, 3), torch.zeros(2).long())


def products(run: Any) -> list[Any]:
    """Input shapes of the matrix products in a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        run()
    return [event.input_shapes for event in profile.events() if event.name in PRODUCTS]


@pytest.mark.parametrize(
    ("frozen", "forward_only", "recomputing", "fused"),
    [
        ((), 1, 4, 3),
        (("weight",), 1, 3, 2),
        (("hidden",), 1, 3, 2),
        (("hidden", "weight"), 1, 2, 1),
        (TRAINED, 1, 1, 1),
    ],
    ids=["none", "head", "hidden", "all but the bias", "all"],
)
def test_how_many_products_there_are(frozen: Any, forward_only: int, recomputing: int, fused: int) -> None:
    """A block of the vocabulary is wider than this one, and a chunk longer, so each product is one call."""
    inputs, constants = draw(33, 16, 12), tokens(12)
    leaves = {name: inputs[name].requires_grad_(name not in frozen) for name in TRAINED}
    trains = len(frozen) < len(TRAINED)

    def logprobs() -> None:
        result = fgrl.ops.linear_logprobs(**leaves, targets=inputs["targets"])
        if trains:
            result.sum().backward()

    def loss() -> None:
        result = fgrl.ops.linear_ppo_loss(**leaves, targets=inputs["targets"], **constants).loss
        if trains:
            result.backward()

    assert len(products(logprobs)) == recomputing
    assert len(products(loss)) == fused
    with torch.no_grad():
        trains = False
        assert len(products(logprobs)) == len(products(loss)) == forward_only
    for name in frozen:
        assert leaves[name].grad is None


def test_rows_under_the_mask_are_in_no_product() -> None:
    inputs, constants = draw(33, 16, 12), tokens(12)
    mask = torch.arange(12) % 2 == 0
    for shapes in products(lambda: both(inputs, constants, mask)):
        assert 12 not in [size for shape in shapes[:2] for size in shape]
        assert 6 in [size for shape in shapes[:2] for size in shape]


MEMORY = """
import sys, torch, fgrl
rows, vocabulary, width, op = int(sys.argv[1]), 16384, 32, sys.argv[2]
torch.set_num_threads(1)

def peak():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return [int(fields[name].split()[0]) / 1024 for name in ("VmHWM", "VmRSS")]

def run(rows):
    hidden, targets = torch.randn(rows, width, requires_grad=True), torch.randint(vocabulary, (rows,))
    weight = torch.randn(vocabulary, width, requires_grad=True)
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()[1]
    if op == "linear_logprobs":
        fgrl.ops.linear_logprobs(hidden, weight, targets).mean().backward()
    else:
        fgrl.ops.linear_ppo_loss(hidden, weight, targets, None, torch.randn(rows)).loss.backward()
    return peak()[0] - before

run(64)
print(run(rows))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or backend.interprets_kernels(), reason="reads /proc, of a C++ run")
@pytest.mark.parametrize("op", ["linear_logprobs", "linear_ppo_loss"])
def test_peak_memory_grows_with_the_chunk_and_not_with_the_rows(op: str) -> None:
    """In MiB: logits of all rows would be 128 and 256."""

    def peak(rows: int, budget: int) -> float:
        environment = {**os.environ, "FGRL_CHUNK_MB": str(budget)}
        command = [sys.executable, "-c", MEMORY, str(rows), op]
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    few, many, large = peak(2048, 8), peak(4096, 8), peak(4096, 64)
    assert few < 40
    assert abs(many - few) < 8
    assert 40 < large - many < 72


def test_backward_twice() -> None:
    inputs, constants = draw(33, 16, 7), tokens(7)
    leaves = {name: leaf(inputs[name]) for name in TRAINED}
    loss = fgrl.ops.linear_ppo_loss(**leaves, targets=inputs["targets"], **constants).loss
    first = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(loss * 3, list(leaves.values()), retain_graph=True)
    for grad in first:
        grad.zero_()
    third = torch.autograd.grad(loss * -2, list(leaves.values()))
    for one, three, minus_two in zip(kept, second, third, strict=True):
        torch.testing.assert_close(three, 3 * one)
        torch.testing.assert_close(minus_two, -2 * one)


def test_what_is_written_into_a_gradient_stays_there() -> None:
    """The backward pass hands its buffers over: nothing it keeps may be one of them."""
    inputs, constants = draw(33, 16, 7), tokens(7)
    weight = leaf(inputs["weight"])
    for _ in range(2):
        fgrl.ops.linear_ppo_loss(inputs["hidden"], weight, inputs["targets"], **constants).loss.backward()
    twice, weight.grad = weight.grad, None
    fgrl.ops.linear_ppo_loss(inputs["hidden"], weight, inputs["targets"], **constants).loss.backward()
    torch.testing.assert_close(twice, 2 * weight.grad)


def test_a_loss_scale_keeps_small_gradients_in_fp16() -> None:
    """The gradient is computed before the loss scale is known, so it waits for it in fp32."""
    inputs, constants = draw(33, 16, 7, torch.float16), tokens(7)
    results = []
    for tensors in (inputs, doubled(inputs)):
        weight = leaf(tensors["weight"])
        loss = fgrl.ops.linear_ppo_loss(
            tensors["hidden"], weight, tensors["targets"], **constants, normalizer=2.0**24
        ).loss
        (loss * 2.0**24).backward()
        results.append(weight.grad)
    assert results[0].dtype == torch.float16
    torch.testing.assert_close(results[0].double(), results[1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("op", ["linear_logprobs", "linear_ppo_loss"])
def test_adapters_on_the_head_and_a_tied_embedding(op: str) -> None:
    """The head is whatever expression gives it, and may be used elsewhere too."""
    ids, inputs, constants = torch.randint(33, (7,)), draw(33, 16, 7), tokens(7)
    parts = {"weight": inputs["weight"], "lora_b": torch.randn(33, 2), "lora_a": torch.randn(2, 16)}

    def loss(weight: Tensor, lora_b: Tensor, lora_a: Tensor) -> Tensor:
        merged = weight + 0.5 * lora_b @ lora_a
        if op == "linear_logprobs":
            return fgrl.ops.linear_logprobs(weight[ids], merged, inputs["targets"]).sum()
        return fgrl.ops.linear_ppo_loss(weight[ids], merged, inputs["targets"], **constants).loss

    ours = gradients(loss, parts)
    with fgrl.use_backend("reference"):
        expected = gradients(loss, parts)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("op", ["linear_logprobs", "linear_ppo_loss"])
def test_inside_a_checkpoint(op: str) -> None:
    inputs, constants = draw(33, 16, 7), tokens(7)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        if op == "linear_logprobs":
            return fgrl.ops.linear_logprobs(hidden.tanh(), weight, inputs["targets"]).sum()
        return fgrl.ops.linear_ppo_loss(hidden.tanh(), weight, inputs["targets"], **constants).loss

    def checkpointed(hidden: Tensor, weight: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(loss, hidden, weight, use_reentrant=False)

    trained = {name: inputs[name] for name in ("hidden", "weight")}
    torch.testing.assert_close(gradients(checkpointed, trained), gradients(loss, trained))


@pytest.mark.parametrize("wants", [True, False], ids=["training", "frozen"])
def test_operators_keep_their_promises_to_pytorch(wants: bool) -> None:
    inputs, constants = draw(33, 16, 6), tokens(6)
    leaves = {name: leaf(tensor) if wants and tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    mask = torch.tensor([1, 0, 1, 1, 1, 0])
    linear = (
        leaves["hidden"],
        leaves["weight"],
        leaves["targets"],
        leaves["bias"],
        mask,
        0.7,
        3.0,
        None,
        None,
        0,
        None,
    )
    torch.library.opcheck(torch.ops.fgrl.linear_logprobs.default, linear)
    torch.library.opcheck(torch.ops.fgrl.linear_logprobs.default, (*linear[:-2], 2, torch.bfloat16))
    old, advantages = constants["old_logprobs"], constants["advantages"]
    cu_seqlens = torch.tensor([0, 2, 6], dtype=torch.int32)  # GSPO, the loss below, needs sequences
    options = (None, None, None, cu_seqlens, 0.0, 0, 0.2, 0.2, float("inf"), 0.0, 0, 0.1, float("inf"))
    loss_options = (1, 1.0, 1.05, 0.0, 0, False)
    options = (*options, *loss_options, [wants] * 3)
    torch.library.opcheck(torch.ops.fgrl.linear_ppo_loss.default, (*linear, old, advantages, *options))
