"""`benchmarks/gpu.sh` goes through all its stages without a GPU, and its limits leave it under nine minutes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a script for Linux")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    result = run(str(tmp_path / "out"), "--dry-run")
    logs = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*.log")}
    assert result.returncode == 0, f"{result.stdout}\n{logs}"
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    (case,) = found["cases"]
    assert (case["op"], case["backend"]) == ("whiten", "triton")
    assert case["variants"]["fgrl"]["status"] == "ok"
    assert {"end_to_end", "scale"} <= set(found)
    assert re.search(r"\d+ passed", logs["tests"])
    assert str(tmp_path) in subprocess.run(
        [sys.executable, "-c", "import fgrl.kernels as k; print(k.__file__)"],
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": f"{tmp_path / 'out' / 'lib'}"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_no_stage_runs_past_nine_minutes(tmp_path: Path) -> None:
    """With a whole of 0 seconds nothing is begun."""
    text = SCRIPT.read_text(encoding="utf-8")
    (whole,) = re.findall(r"^WHOLE=(\d+)$", text, re.MULTILINE)
    assert int(whole) <= 530  # 10 seconds for what is being killed
    root = 'ROOT=$(cd "$(dirname "$0")/.." && pwd)'
    assert root in text
    script = tmp_path / "gpu.sh"
    script.write_text(text.replace(f"WHOLE={whole}", "WHOLE=0").replace(root, f"ROOT={SCRIPT.parents[1]}"))
    result = subprocess.run(
        ["bash", str(script), str(tmp_path / "out"), "--dry-run"],
        env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "no time left" in result.stdout
    assert not list((tmp_path / "out").glob("*.log"))


@pytest.mark.parametrize("option", [[], ["--dry-run"]], ids=["on a GPU", "dry run"])
def test_only_a_real_run_is_in_a_hurry(option: list[str], tmp_path: Path) -> None:
    """What `timeout` is asked for: on a GPU at most what is left of nine minutes, in a dry run hours."""
    fake = tmp_path / "bin" / "timeout"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$5 $*" >>"{tmp_path}/limits"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PYTHON": sys.executable, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), str(tmp_path / "out"), *option]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    limits = [int(line.split()[0]) for line in (tmp_path / "limits").read_text().splitlines()]
    assert len(limits) >= 4
    if option:
        assert min(limits) >= 1000
    else:
        assert max(limits) <= 530


def test_usage(tmp_path: Path) -> None:
    assert run().returncode == 2
    assert run(str(tmp_path), "--no-such-option").returncode == 2
