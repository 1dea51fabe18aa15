"""How many rows a chunk of logits has: arithmetic, tried without the devices it is about."""

from __future__ import annotations

import pytest
import torch

import fgrl
from fgrl.ops._chunks import budget_bytes, rows_at_once

GIB = 2**30


@pytest.mark.parametrize("vocabulary", [49152, 128256, 151936, 262144])
@pytest.mark.parametrize("bytes_a_logit", [4, 6, 8])
@pytest.mark.parametrize("memory", [16, 24, 80, 141], ids="{} GB".format)
def test_on_a_gpu_rows_are_whole_tiles_and_do_not_depend_on_the_call(
    memory: int, bytes_a_logit: int, vocabulary: int
) -> None:
    budget = memory * GIB // 32
    found = {rows_at_once(count, vocabulary, bytes_a_logit, budget, "cuda") for count in (1, 100, 4096, 100_000)}
    assert len(found) == 1
    rows = found.pop()
    assert rows % 128 == 0
    assert rows >= 128
    assert rows * vocabulary * bytes_a_logit <= budget or rows == 128
    assert (rows + 128) * vocabulary * bytes_a_logit > budget, "one tile more would not fit"


def test_a_chunk_on_an_h100_is_bound_by_arithmetic() -> None:
    """80 GiB, Qwen's vocabulary, bf16 operands: see `rows_at_once` for the formula and the device's ratio."""
    rows, width = rows_at_once(10**6, 151936, 6, 80 * GIB // 32, "cuda"), 4096
    assert rows == 2944
    assert rows * width / (rows + 4 * width) > 2 * 989e12 / 3.35e12


@pytest.mark.parametrize(("count", "chunks"), [(0, 0), (1, 1), (349, 1), (350, 2), (1024, 3)])
def test_on_a_cpu_chunks_are_few_and_of_equal_size(count: int, chunks: int) -> None:
    """A budget of 64 MiB has room for 349 rows of 48 vocabulary rows a KiB."""
    rows = rows_at_once(count, 49152 - 1088, 4, 64 * 2**20, "cpu")
    assert rows <= 349
    assert rows * chunks - count < max(chunks, 1)


def test_the_environment_decides_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGRL_CHUNK_MB", "0.5")
    assert budget_bytes(torch.device("cpu")) == budget_bytes(torch.device("cuda", 0)) == 2**19


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True], ids=repr)
@pytest.mark.parametrize("op", ["linear_logprobs", "linear_ppo_loss"])
def test_chunk_tokens_is_a_count(op: str, value: object) -> None:
    arguments = {"targets": torch.zeros(2).long()}
    if op == "linear_ppo_loss":
        arguments |= {"old_logprobs": None, "advantages": torch.zeros(2)}
    with pytest.raises(ValueError, match=f"^chunk_tokens is {value!r}; it must be a whole number of at least 1"):
        getattr(fgrl.ops, op)(torch.zeros(2, 3), torch.zeros(8, 3), **arguments, chunk_tokens=value)


@pytest.mark.parametrize("op", ["linear_logprobs", "linear_ppo_loss"])
def test_chunk_tokens_goes_before_the_environment(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGRL_CHUNK_MB", "64")
    hidden, weight, targets = torch.randn(7, 3), torch.randn(8, 3), torch.arange(7)
    rest = {} if op == "linear_logprobs" else {"old_logprobs": None, "advantages": torch.ones(7)}
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        getattr(fgrl.ops, op)(hidden, weight, targets, **rest, chunk_tokens=3)
    rows = [event.input_shapes[0][0] for event in profile.events() if event.name == "fgrl::logit_statistics"]
    assert rows in ([3, 3, 1], [])  # none where the reference runs
