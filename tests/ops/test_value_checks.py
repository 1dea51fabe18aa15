"""What the checks of values cost, what is remembered of them, and how they are switched off.

There is no GPU here: tensors of `FakeTensorMode` are on one as far as Python can tell, and each dispatched operator
would be a kernel.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from numerics import offsets
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fgrl
from fgrl import backend

B, T = 4, 8
needs_triton = pytest.mark.skipif(
    backend.explain("gae", torch.device("cuda")).backend != "triton", reason="needs Triton, to compile nothing"
)


class Dispatched(TorchDispatchMode):
    """The names of all operators that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func).removesuffix(".default"))
        return func(*args, **(kwargs or {}))

    def checks(self) -> list[str]:
        return [name for name in self.names if "check" in name or "assert" in name or "is_binary" in name]


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    device = torch.device("cuda")
    with FakeTensorMode():
        fgrl.ops.whiten(*torch.zeros(2, 1, 1, device=device))  # the first call of the mode makes a tensor of its own
        yield device


def dispatched(run: Any) -> Dispatched:
    with Dispatched() as found:
        run()
    return found


@needs_triton
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32], ids=str)
def test_a_mask_costs_one_kernel_once(dtype: torch.dtype, gpu: torch.device) -> None:
    rewards, values = torch.zeros(B, T, device=gpu), torch.zeros(B, T, device=gpu)
    mask = torch.ones(B, T, dtype=dtype, device=gpu)
    first = dispatched(lambda: fgrl.ops.gae(rewards, values, mask))
    assert first.names == ["fgrl.check_range", "fgrl.gae"]
    assert dispatched(lambda: fgrl.ops.gae(rewards, values, mask)).names == ["fgrl.gae"]
    others = dispatched(lambda: (fgrl.ops.whiten(rewards, mask), fgrl.ops.value_loss(values, values, values, mask)))
    assert others.checks() == []
    mask.zero_()
    assert dispatched(lambda: fgrl.ops.whiten(rewards, mask)).checks() == ["fgrl.check_range"]
    assert dispatched(lambda: fgrl.ops.whiten(rewards, mask.clone())).checks() == ["fgrl.check_range"]


@needs_triton
def test_a_bool_mask_costs_nothing(gpu: torch.device) -> None:
    rows = torch.zeros(B, T, device=gpu)
    assert dispatched(lambda: fgrl.ops.gae(rows, rows, rows == 0)).checks() == []


@needs_triton
def test_cu_seqlens_cost_one_kernel_once_for_each_length(gpu: torch.device) -> None:
    rows, cu_seqlens = torch.zeros(B * T, device=gpu), torch.zeros(B + 1, dtype=torch.int32, device=gpu)
    run = lambda: fgrl.ops.gae(rows, rows, cu_seqlens=cu_seqlens)  # noqa: E731
    assert dispatched(run).names == ["fgrl.check_offsets", "fgrl.gae"]
    assert dispatched(run).names == ["fgrl.gae"]
    longer = torch.zeros(B * T + 1, device=gpu)
    found = dispatched(lambda: fgrl.ops.gae(longer, longer, cu_seqlens=cu_seqlens))
    assert found.checks() == ["fgrl.check_offsets"], "they end at one length only"
    cu_seqlens.zero_()
    assert dispatched(run).checks() == ["fgrl.check_offsets"]


@needs_triton
def test_targets_are_checked_under_their_mask(gpu: torch.device) -> None:
    hidden, weight = torch.zeros(B, T, 2, device=gpu), torch.zeros(5, 2, device=gpu)
    targets = torch.zeros(B, T, dtype=torch.int64, device=gpu)
    masks = [torch.ones(B, T, dtype=torch.bool, device=gpu) for _ in range(2)]

    def run(mask: Tensor | None) -> list[str]:
        return dispatched(lambda: fgrl.ops.linear_logprobs(hidden, weight, targets, mask=mask)).checks()

    assert run(masks[0]) == ["fgrl.check_range"]
    assert run(masks[0]) == []
    assert run(masks[1]) == ["fgrl.check_range"], "another mask may select another target"
    masks[1].fill_(True)
    assert run(masks[1]) == ["fgrl.check_range"]
    assert run(None) == ["fgrl.check_range"]


@needs_triton
def test_other_values_cost_one_kernel_each(gpu: torch.device) -> None:
    rows, lam, count = torch.zeros(B, T, device=gpu), torch.ones(B, device=gpu), torch.ones((), device=gpu)
    assert dispatched(lambda: fgrl.ops.gae(rows, rows, lam=lam)).names == ["fgrl.check_range", "fgrl.gae"]
    assert dispatched(lambda: fgrl.ops.gae(rows, rows, lam=lam)).names == ["fgrl.gae"]
    found = dispatched(lambda: fgrl.ops.ppo_loss(rows, rows, rows, normalizer=count))
    assert found.checks() == ["fgrl.check_range"]


def test_on_a_cpu_offsets_dispatch_nothing_and_a_mask_one_operator() -> None:
    rows, cu_seqlens, mask = torch.zeros(B * T), offsets([T] * B), torch.ones(B * T, dtype=torch.int64)
    with fgrl.use_backend("auto"):
        if backend.resolve("gae", torch.device("cpu")) != "cpp":
            pytest.skip("the C++ extension does not run here")
        found = dispatched(lambda: fgrl.ops.gae(rows, rows, mask, cu_seqlens=cu_seqlens))
    assert found.names == ["fgrl.is_binary", "fgrl.gae"]


def test_on_a_cpu_every_call_is_checked() -> None:
    """NumPy writes into a tensor without its version changing, and a bad offset would be read by C++."""
    rows, cu_seqlens = torch.zeros(5), offsets([2, 3])
    fgrl.ops.gae(rows, rows, cu_seqlens=cu_seqlens)
    cu_seqlens.numpy()[1] = 9
    with pytest.raises(ValueError, match="cu_seqlens decreases"):
        fgrl.ops.gae(rows, rows, cu_seqlens=cu_seqlens)


BAD: dict[str, Any] = {
    "mask": lambda: fgrl.ops.whiten(torch.zeros(1, 2), torch.full((1, 2), 2)),
    "lam": lambda: fgrl.ops.gae(torch.zeros(1, 2), torch.zeros(1, 2), lam=torch.full((1,), 1.5)),
    "normalizer": lambda: fgrl.ops.ppo_loss(*torch.zeros(3, 1, 2), normalizer=torch.tensor(-1.0)),
}


@pytest.mark.parametrize("name", BAD)
def test_off_is_off_inside_the_block_of_this_thread(name: str) -> None:
    with fgrl.checks("off"):
        BAD[name]()
        with fgrl.checks("on"), pytest.raises(ValueError, match=name):
            BAD[name]()
        found: list[BaseException] = []

        def other() -> None:
            try:
                BAD[name]()
            except ValueError as error:
                found.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
        assert len(found) == 1
    with pytest.raises(ValueError, match=name):
        BAD[name]()


def test_off_is_about_values_alone() -> None:
    with fgrl.checks("off"), pytest.raises(ValueError, match="mask has shape"):
        fgrl.ops.whiten(torch.zeros(1, 2), torch.ones(1, 3))


@pytest.mark.parametrize("mode", ["", "OFF", None, False], ids=repr)
def test_an_unknown_mode(mode: Any) -> None:
    with pytest.raises(ValueError, match=r"mode is .*; it must be one of on, off"), fgrl.checks(mode):
        pass


def test_a_compiled_function_follows_the_mode_of_its_call() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, mask: fgrl.ops.whiten(x, mask), backend="eager", fullgraph=True)
    rows, bad = torch.randn(2, 3), torch.full((2, 3), 2)
    compiled(rows, torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="mask has values other than 0 and 1"):
        compiled(rows, bad)
    with fgrl.checks("off"):
        compiled(rows, bad)
    with pytest.raises(RuntimeError, match="mask has values other than 0 and 1"):
        compiled(rows, bad)


def test_the_rows_of_a_mask_are_found_once_for_both_passes() -> None:
    hidden, weight = torch.randn(B, T, 2, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    targets, mask = torch.zeros(B, T, dtype=torch.int64), torch.rand(B, T) < 0.5
    if backend.resolve("linear_logprobs", torch.device("cpu")) == "reference":
        pytest.skip("nothing fused runs here")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fgrl.ops.linear_logprobs(hidden, weight, targets, mask=mask).sum().backward()
    assert sum(event.name == "aten::nonzero" for event in profile.events()) == 1
