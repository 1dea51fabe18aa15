"""The headers of csrc without torch, under the compiler's sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "csrc"
COMPILER = os.environ.get("CXX") or shutil.which("c++")


def build(folder: Path, source: str, *flags: str) -> Path:
    """A driver of this folder with its own `main`, compiled with `flags`."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    target = folder / "driver"
    command = [COMPILER, "-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{HEADERS}", *flags]
    probe = subprocess.run(
        [COMPILER, *flags, "-x", "c++", "-", "-o", str(target)], input="int main() {}", text=True, check=False
    )
    if probe.returncode != 0:
        pytest.skip(f"the compiler has no {flags[0]}")
    subprocess.run([*command, str(HERE / source), "-o", str(target), "-pthread"], check=True)
    return target


@pytest.mark.slow
def test_every_path_agrees_under_address_and_undefined_sanitizers(tmp_path: Path) -> None:
    driver = build(tmp_path, "align_edits_fuzz.cpp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    corpus = sorted(str(path) for path in (HERE / "corpus").iterdir())
    environment = {**os.environ, "FUZZ_SECONDS": "5"}
    result = subprocess.run([driver, *corpus], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "every path agrees with the rule" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "advantages_check.cpp",
        "groups_check.cpp",
        "losses_check.cpp",
        "policy_losses_check.cpp",
        "kl_rows_check.cpp",
        "softmax_check.cpp",
        "matmul_check.cpp",
        "token_reward_head_check.cpp",
        "whiten_check.cpp",
    ],
)
def test_every_instruction_set_agrees_with_the_definition(source: str, tmp_path: Path) -> None:
    driver = build(tmp_path, source, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    result = subprocess.run([driver], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every instruction set agrees with the definition" in result.stdout


@pytest.mark.slow
def test_threads_under_the_thread_sanitizer(tmp_path: Path) -> None:
    driver = build(tmp_path, "align_edits_fuzz.cpp", "-fsanitize=thread")
    environment = {**os.environ, "FUZZ_THREADS": "4"}
    result = subprocess.run([driver], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
