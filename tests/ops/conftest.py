"""What the tests of the ops share: running the same test on the fused implementation and on the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import fgrl


@pytest.fixture(params=["auto", "reference"])
def each_backend(request: Any) -> Iterator[None]:
    """Once on what a user gets here, and once on the specification, which has to hold by itself."""
    with fgrl.use_backend(request.param):
        yield
