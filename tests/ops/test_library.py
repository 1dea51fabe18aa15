"""The operators behind the public ops, as PyTorch sees them: traced whole, and right when differentiated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from numerics import leaf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fgrl
from fgrl import backend

CPU = torch.device("cpu")
OPTIONS = fgrl.ops.PPOLossConfig(kl_coef=0.1, kl_estimator="k3+", aggregation="seq-mean-token-mean", dual_clip=3.0)


def rows(batch: int, length: int, count: int) -> list[Tensor]:
    return [torch.randn(batch, length) for _ in range(count)]


def run_gae(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    mask = torch.rand(batch, length) < 0.7
    return lambda r, v, b: fgrl.ops.gae(r, v, mask, lam=0.9, bootstrap=b), [*rows(batch, length, 2), torch.randn(batch)]


def run_token_advantages(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    mask = torch.rand(batch, length) < 0.7

    def run(*tensors: Tensor) -> Any:
        *tokens, scores, lam = tensors
        return fgrl.ops.token_advantages(*tokens, mask, sequence_rewards=scores, lam=lam, kl_coef=0.1, reward_clip=1.0)

    return run, [*rows(batch, length, 4), torch.randn(batch), torch.rand(batch)]


def run_group_advantages(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    mask, ids = torch.rand(batch, length) < 0.7, torch.arange(length).expand(batch, length) // 3
    groups = torch.arange(batch) % 2

    def run(rewards: Tensor, token_rewards: Tensor) -> Tensor:
        return fgrl.ops.group_advantages(
            rewards, groups, mask, token_rewards=token_rewards, segment_ids=ids, min_temperature=0.5, gamma=0.9
        )

    return run, [torch.randn(batch), *rows(batch, length, 1)]


def run_ppo_loss(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    mask = torch.rand(batch, length) < 0.7

    def run(logprobs: Tensor, old: Tensor, advantages: Tensor, ref: Tensor) -> Tensor:
        return fgrl.ops.ppo_loss(logprobs, old, advantages, mask, ref_logprobs=ref, config=OPTIONS).loss

    return run, rows(batch, length, 4)


def run_value_loss(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    mask = torch.rand(batch, length) < 0.7
    return lambda v, old, r: fgrl.ops.value_loss(v, old, r, mask).loss, rows(batch, length, 3)


def run_edit_preference_loss(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    edits = torch.rand(batch, length) < 0.3
    return lambda a, b: fgrl.ops.edit_preference_loss(a, b, edits, ~edits).loss, rows(batch, length, 2)


def run_token_reward_head(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    tensors = [torch.randn(batch, length, 8), torch.randn(8), torch.randn(1), torch.rand(8)]
    return lambda h, w, b, n: fgrl.ops.token_reward_head(h, w, b, norm_weight=n), tensors


def run_whiten(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    mask = torch.rand(batch, length) < 0.7
    return lambda a: fgrl.ops.whiten(a, mask), rows(batch, length, 1)


def run_linear_logprobs(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    targets, mask = torch.randint(33, (batch, length)), torch.rand(batch, length) < 0.7

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return fgrl.ops.linear_logprobs(
            hidden, weight, targets, bias=bias, mask=mask, temperature=0.7, return_entropy=True
        )

    return run, [torch.randn(batch, length, 8), torch.randn(33, 8), torch.randn(33)]


def run_linear_support_logprobs(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    support, mask = torch.rand(batch, length, 33).topk(5).indices, torch.rand(batch, length) < 0.7

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return fgrl.ops.linear_logprobs(
            hidden, weight, support[..., 2], bias=bias, mask=mask, softcap=9.0, return_entropy=True, support_ids=support
        )

    return run, [torch.randn(batch, length, 8), torch.randn(33, 8), torch.randn(33)]


def run_linear_ppo_loss(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    targets, mask = torch.randint(33, (batch, length)), torch.rand(batch, length) < 0.7
    old, advantages, ref = rows(batch, length, 3)

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fgrl.ops.linear_ppo_loss(
            hidden, weight, targets, old - 3, advantages, mask, bias=bias, ref_logprobs=ref - 3, config=OPTIONS
        ).loss

    return run, [torch.randn(batch, length, 8), torch.randn(33, 8), torch.randn(33)]


def run_linear_kl(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    mask = torch.rand(batch, length) < 0.7
    teacher = torch.randn(batch, length, 4), torch.randn(33, 4)

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        states, head = (tensor.to(hidden.dtype) for tensor in teacher)
        return fgrl.ops.linear_kl(hidden, weight, states, head, mask, bias=bias, divergence="jsd", softcap=9.0).loss

    return run, [torch.randn(batch, length, 8), torch.randn(33, 8), torch.randn(33)]


def run_linear_topk_kl(batch: int, length: int) -> tuple[Callable[..., Any], list[Tensor]]:
    mask = torch.rand(batch, length) < 0.7
    logprobs, ids = torch.randn(batch, length, 33).log_softmax(-1).topk(5)

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fgrl.ops.linear_topk_kl(hidden, weight, ids, logprobs, mask, bias=bias, softcap=9.0).loss

    return run, [torch.randn(batch, length, 8), torch.randn(33, 8), torch.randn(33)]


CASES = [
    run_gae,
    run_token_advantages,
    run_group_advantages,
    run_whiten,
    run_ppo_loss,
    run_value_loss,
    run_edit_preference_loss,
    run_token_reward_head,
    run_linear_logprobs,
    run_linear_support_logprobs,
    run_linear_ppo_loss,
    run_linear_kl,
    run_linear_topk_kl,
]
# An op of two operators is named by one of them.
OPS = {case: case.__name__.removeprefix("run_").replace("linear_support", "linear") for case in CASES}
FUSED = [case for case in CASES if backend.resolve(OPS[case], CPU) != "reference"]


def name(case: Callable[..., Any]) -> str:
    return case.__name__.removeprefix("run_")


def tensors_of(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def total(result: Any) -> Tensor:
    return torch.stack([tensor.double().square().sum() for tensor in tensors_of(result) if tensor.requires_grad]).sum()


@pytest.mark.parametrize("case", CASES, ids=name)
def test_compiles_to_one_graph_and_not_again_for_another_length(case: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    lengths = (5, 9, 12, 17)
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    operator = name(case)
    if backend.resolve(OPS[case], CPU) == "reference" and operator in ("gae", "token_advantages", "group_advantages"):
        pytest.skip("the reference's loop over time is unrolled for each length")
    mask = torch.ones(3, max(lengths), dtype=torch.bool)
    functions: dict[str, Callable[..., Any]] = {
        "gae": lambda x, m: fgrl.ops.gae(x, x, m).advantages,
        "token_advantages": lambda x, m: fgrl.ops.token_advantages(x, x, x, x, m, kl_coef=0.1).advantages,
        "group_advantages": lambda x, m: fgrl.ops.group_advantages(x[:, 0], (x[:, 1] > 0).long(), m, token_rewards=x),
        "whiten": fgrl.ops.whiten,
        "ppo_loss": lambda x, m: fgrl.ops.ppo_loss(x, x.detach(), x.detach(), m).loss,
        "value_loss": lambda x, m: fgrl.ops.value_loss(x, x.detach(), x.detach(), m).loss,
        "edit_preference_loss": lambda x, m: fgrl.ops.edit_preference_loss(x, x, m, m).loss,
        "linear_logprobs": lambda x, m: fgrl.ops.linear_logprobs(x[..., None], x[:2, :1], m.long(), mask=m),
        "linear_support_logprobs": lambda x, m: fgrl.ops.linear_logprobs(
            x[..., None], x[:2, :1], m.long(), mask=m, support_ids=m[..., None] + torch.tensor([0, -1])
        ),
        "linear_ppo_loss": lambda x, m: fgrl.ops.linear_ppo_loss(x[..., None], x[:2, :1], m.long(), x, x, m).loss,
        "linear_kl": lambda x, m: fgrl.ops.linear_kl(x[..., None], x[:2, :1], x[..., None], x[:2, :1], m).loss,
        "linear_topk_kl": lambda x, m: (
            fgrl.ops.linear_topk_kl(x[..., None], x[:2, :1], m[..., None].long(), -x.abs()[..., None], m).loss
        ),
        "token_reward_head": lambda x, m: fgrl.ops.token_reward_head(x[..., None] * m[..., None], x.new_ones(1)),
    }
    compiled = torch.compile(functions[operator], backend=count, fullgraph=True)
    for length in lengths:
        x = torch.randn(3, length)
        expected = functions[operator](x, mask[:, :length].clone())
        torch.testing.assert_close(compiled(x, mask[:, :length].clone()), expected)
    assert graphs <= 2, "one graph for the first length, and one for every other"


class Calls(TorchDispatchMode):
    """Keeps the calls of operators of the library."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fgrl":
            self.found.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", FUSED, ids=name)
def test_opcheck(case: Callable[..., Any], dtype: torch.dtype) -> None:
    run, inputs = case(3, 7)
    calls = Calls()
    with calls:
        run(*(leaf(tensor.to(dtype)) for tensor in inputs))
    assert calls.found
    for operator, arguments in calls.found:
        leaves = (leaf(x) if isinstance(x, Tensor) and x.grad_fn is not None else x for x in arguments)
        torch.library.opcheck(operator, tuple(leaves))


@pytest.mark.parametrize("case", FUSED, ids=name)
def test_compiled_gradients_are_the_eager_ones(case: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    run, inputs = case(3, 7)
    compiled = torch.compile(lambda *tensors: total(run(*tensors)), backend="aot_eager", fullgraph=True)
    eager, traced = ([leaf(tensor) for tensor in inputs] for _ in range(2))
    total(run(*eager)).backward()
    compiled(*traced).backward()
    for one, other in zip(eager, traced, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("case", FUSED, ids=name)
def test_fused_and_plain_agree_in_value_and_gradient(case: Callable[..., Any]) -> None:
    run, inputs = case(4, 33)
    fused, plain = ([leaf(tensor) for tensor in inputs] for _ in range(2))
    ours = run(*fused)
    with fgrl.use_backend("reference"):
        theirs = run(*plain)
    for one, other in zip(tensors_of(ours), tensors_of(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    total(ours).backward()
    total(theirs).backward()
    for one, other in zip(fused, plain, strict=True):
        grad = torch.zeros_like(one) if one.grad is None else one.grad
        expected = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", FUSED, ids=name)
def test_a_second_derivative_is_refused(case: Callable[..., Any]) -> None:
    """The first one has no graph of its own: better an error than a silent 0."""
    run, inputs = case(2, 3)
    leaves = [leaf(tensor) for tensor in inputs]
    grads = torch.autograd.grad(total(run(*leaves)), leaves, create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grads[0].sum().backward()


class WithoutFp64(TorchDispatchMode):
    """Refuses what a device without fp64 refuses: tensors of that dtype."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
            raise TypeError(f"{func} made a float64 tensor")
        return result


@pytest.mark.parametrize("case", CASES, ids=name)
def test_references_that_need_fp64_are_those_refused_where_there_is_none(case: Callable[..., Any]) -> None:
    run, inputs = case(3, 7)
    leaves = [leaf(tensor) for tensor in inputs]
    refused = name(case) in backend._REFERENCES_WITH_FP64
    expected = pytest.raises(TypeError, match="made a float64 tensor") if refused else nullcontext()
    with fgrl.use_backend("reference"), expected, WithoutFp64():
        found = [tensor.sum() for tensor in tensors_of(run(*leaves)) if tensor.requires_grad]
        if found:
            torch.stack(found).sum().backward()
