"""The instruction sets of the C++ ops: which one they run on, and the two ways to limit it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import fgrl
from fgrl import extension

pytestmark = pytest.mark.skipif(not extension.available(), reason="the C++ extension does not run here")


def in_new_process(limit: str) -> subprocess.CompletedProcess[str]:
    code = "from fgrl import extension; print(extension.cpu_capability())"
    environment = {**os.environ, "FGRL_CPU_CAPABILITY": limit}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_limit_holds_inside_the_block_only() -> None:
    before = extension.cpu_capability()
    with extension.limit_cpu_capability("default"):
        assert extension.cpu_capability() == "default"
        with extension.limit_cpu_capability("avx512_bf16"):
            assert extension.CPU_CAPABILITIES.index(extension.cpu_capability() or "") >= 0
        assert extension.cpu_capability() == "default"
    assert extension.cpu_capability() == before


def test_the_environment_variable_limits_a_process() -> None:
    assert in_new_process("default").stdout.strip() == "default"
    assert in_new_process("").stdout.strip() == in_new_process("avx512_bf16").stdout.strip() != ""


def test_an_unknown_instruction_set_is_refused() -> None:
    sentence = "is 'sse9'; it must be one of default, avx2, avx512, avx512_bf16"
    with pytest.raises(ValueError, match="^limit " + sentence), extension.limit_cpu_capability("sse9"):
        pass
    assert f"ValueError: FGRL_CPU_CAPABILITY {sentence}" in in_new_process("sse9").stderr


@pytest.mark.skipif(extension.cpu_capability() in (None, "default"), reason="there is one instruction set here")
def test_instruction_sets_differ_and_each_is_the_same_everywhere() -> None:
    """Sums are taken in another order, so some bits differ: the limit reaches the ops."""
    inputs = torch.randn(64, 32), torch.randn(999, 32), torch.randint(999, (64,))
    best = fgrl.ops.linear_logprobs(*inputs)
    with extension.limit_cpu_capability("default"):
        plain = fgrl.ops.linear_logprobs(*inputs)
        assert torch.equal(plain, fgrl.ops.linear_logprobs(*inputs))
    assert not torch.equal(plain, best)
    torch.testing.assert_close(plain, best, rtol=1e-5, atol=1e-5)
