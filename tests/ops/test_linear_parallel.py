"""The `linear_*` ops with the vocabulary split over two processes: the numbers and gradients of the whole head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from numerics import leaf
from torch import Tensor

import fgrl
from fgrl.ops import PPOLossConfig

SHARDS = (5, 8)  # words of each process, as ragged as it comes
CONFIG = PPOLossConfig(entropy_coef=0.1, kl_coef=0.2, aggregation="seq-mean-token-mean")
OPTIONS: dict[str, Any] = {"temperature": 0.7, "softcap": 4.0}

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo"
)


def draw(dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shape, words = (3, 7), sum(SHARDS)
    return {
        "hidden": torch.randn(*shape, 6, dtype=dtype),
        "weight": torch.randn(words, 6, dtype=dtype),
        "bias": torch.randn(words, dtype=dtype),
        "targets": torch.randint(words, shape),
        "mask": torch.rand(shape) < 0.7,
        "old_logprobs": torch.randn(shape) - 2,
        "advantages": torch.randn(shape),
        "ref_logprobs": torch.randn(shape) - 2,
        "teacher_hidden": torch.randn(*shape, 4, dtype=dtype),
        "teacher_weight": torch.randn(words, 4, dtype=dtype),
    }


def results(inputs: dict[str, Tensor], words: slice, group: Any) -> dict[str, Tensor]:
    """Outputs of the ops, and their gradients by hidden, weight and bias, with the `words` of a process."""
    found: dict[str, Tensor] = {}
    tokens = {name: inputs[name] for name in ("targets", "mask")}
    rest = {name: inputs[name] for name in ("old_logprobs", "advantages", "ref_logprobs")}
    options: dict[str, Any] = OPTIONS | {"process_group": group}
    # The target, its neighbour in the vocabulary, which may be another process's, and a place that is free.
    listed = torch.stack([inputs["targets"], (inputs["targets"] + 4) % sum(SHARDS)], -1)
    support = torch.cat([listed, torch.full_like(listed[..., :1], -1)], -1)
    teacher = {"teacher_hidden": inputs["teacher_hidden"], "teacher_weight": inputs["teacher_weight"][words]}
    teacher_logprobs = torch.tensor([-0.4, -1.5], dtype=inputs["hidden"].dtype).expand(listed.shape)

    def weighted(outputs: tuple[Tensor, Tensor]) -> Tensor:
        return (outputs[0] * rest["advantages"]).sum() + (outputs[1] * rest["old_logprobs"]).sum()

    ops: dict[str, Callable[..., Any]] = {
        "linear_logprobs": lambda **head: fgrl.ops.linear_logprobs(**head, **tokens, return_entropy=True),
        "support": lambda **head: fgrl.ops.linear_logprobs(**head, **tokens, return_entropy=True, support_ids=support),
        "linear_ppo_loss": lambda **head: fgrl.ops.linear_ppo_loss(**head, **tokens, **rest, config=CONFIG),
        "linear_kl": lambda **head: fgrl.ops.linear_kl(**head, **teacher, mask=inputs["mask"], divergence="jsd"),
        "linear_topk_kl": lambda **head: fgrl.ops.linear_topk_kl(
            **head, teacher_ids=listed, teacher_logprobs=teacher_logprobs, mask=inputs["mask"]
        ),
    }
    for op, call in ops.items():
        trained = {name: leaf(inputs[name][words]) for name in ("weight", "bias")} | {"hidden": leaf(inputs["hidden"])}
        outputs = call(**trained, **options)
        loss = outputs.loss if hasattr(outputs, "loss") else weighted(outputs)
        numbers = {"loss": loss, **getattr(outputs, "stats", {})}
        if not hasattr(outputs, "stats"):
            numbers |= {str(index): output for index, output in enumerate(outputs)}
        found |= {f"{op} {name}": number.detach() for name, number in numbers.items()}
        loss.backward()
        found |= {f"{op} {name}": tensor.grad for name, tensor in trained.items()}
    return found


def run(rank: int, store: str, folder: str, backend: str, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    words = slice(sum(SHARDS[:rank]), sum(SHARDS[: rank + 1]))
    inputs = draw(dtype)
    with fgrl.use_backend(backend):
        found = results(inputs, words, dist.group.WORLD)
    inputs["targets"][0] = sum(SHARDS)
    try:
        results(inputs, words, dist.group.WORLD)
    except ValueError as error:
        found["error"] = str(error)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("backend", "dtype"), [("auto", torch.float64), ("auto", torch.float32), ("reference", torch.float64)]
)
def test_two_processes_have_the_numbers_of_one(tmp_path: Path, backend: str, dtype: torch.dtype) -> None:
    torch.multiprocessing.spawn(run, args=(f"file://{tmp_path}/store", str(tmp_path), backend, dtype), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    with fgrl.use_backend("reference"):
        whole = results(draw(dtype), slice(None), None)
    for name, expected in whole.items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), expected, msg=name)
        else:
            for part in parts:
                torch.testing.assert_close(part[name], expected, msg=name)
    assert all("targets has ids outside the vocabulary" in part["error"] for part in parts)


@pytest.mark.parametrize("op", ["linear_logprobs", "linear_ppo_loss"])
def test_what_is_no_process_group_is_refused(op: str) -> None:
    rest = [] if op == "linear_logprobs" else [None, torch.zeros(2)]
    with pytest.raises(ValueError, match="process_group is a str"):
        getattr(fgrl.ops, op)(torch.zeros(2, 3), torch.zeros(8, 3), torch.zeros(2).long(), *rest, process_group="tp")
