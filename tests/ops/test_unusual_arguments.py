"""Arguments one does not expect: wrong types and empty heads are named, and unusual arrays are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fgrl
from fgrl.ops import PPOLossConfig


@pytest.mark.parametrize("value", ["1e-3", True, torch.tensor(0.5), [0.5]], ids=["text", "bool", "tensor", "list"])
@pytest.mark.parametrize("name", ["clip_low", "clip_high", "dual_clip", "kl_coef", "entropy_coef", "importance_cap"])
def test_coefficients_are_numbers(name: str, value: Any) -> None:
    """YAML makes text of 1e-3."""
    with pytest.raises(ValueError, match=f"^{name} is .*; it must be a .*number") as raised:
        PPOLossConfig(**{name: value})
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize("name", ["clip_low", "clip_high", "kl_coef", "entropy_coef"])
def test_only_bounds_can_be_none(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is None; it must be"):
        PPOLossConfig(**{name: None})  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", ["2", 1.5], ids=repr)
def test_num_threads_is_a_whole_number(threads: Any) -> None:
    with pytest.raises(ValueError, match=f"^num_threads is {threads!r}; it must be at least 1 and a whole number"):
        fgrl.align_edits([[1]], [[1]], num_threads=threads)


@pytest.mark.parametrize("sequence", ["text", {1, 2}], ids=["text", "set"])
def test_what_is_no_sequence_of_token_ids_is_named(sequence: Any) -> None:
    with pytest.raises(ValueError, match=r"^original\[1\] is no tensor or array"):
        fgrl.align_edits([[1], sequence], [[1], [1]])


@pytest.mark.parametrize(("words", "width"), [(0, 3), (4, 0)], ids=["no words", "no columns"])
def test_a_head_that_is_empty_is_named(words: int, width: int) -> None:
    message = rf"^weight has shape \[{words}, {width}\]; it must have at least one row and one column"
    with pytest.raises(ValueError, match=message):
        fgrl.ops.linear_logprobs(torch.zeros(0, width), torch.zeros(words, width), torch.zeros(0, dtype=torch.long))


@pytest.mark.filterwarnings("error")
def test_arrays_that_pytorch_does_not_take_as_they_are() -> None:
    """Read-only, as those of Arrow's columns are, and backwards."""
    tokens = np.arange(5)
    tokens.flags.writeable = False
    bounds = np.array([0, 2, 5])
    bounds.flags.writeable = False
    assert fgrl.align_edits([tokens], [tokens[::-1]]).distance.tolist() == [4]
    assert fgrl.align_edits((tokens, bounds), (tokens[::-1], bounds)).distance.tolist() == [2, 2]
