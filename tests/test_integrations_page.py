"""The plain loop of docs/integrations.md runs, and trains what it should."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "integrations.md"


def test_the_plain_loop_runs() -> None:
    pytest.importorskip("accelerate")
    section = PAGE.read_text("utf-8").split("## A plain loop")[1]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {}
    start, rest = code.split("for step in range(3):")
    exec(start, names)
    before = [parameter.detach().clone() for parameter in names["parameters"]]
    exec("for step in range(3):" + rest, names)
    assert torch.isfinite(names["loss"])
    assert all(not torch.equal(old, new) for old, new in zip(before, names["parameters"], strict=True))
