"""Pairs of token sequences for the tests of `align_edits`, and what two alignments have in common."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from fgrl import EditAlignment, extension

needs_extension = pytest.mark.skipif(not extension.available(), reason=str(extension.why_not()))
backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_extension)])


def token_pairs(alphabet: int, max_size: int = 40) -> st.SearchStrategy[tuple[list[int], list[int]]]:
    tokens = st.lists(st.integers(0, alphabet - 1), max_size=max_size)
    return st.tuples(tokens, tokens)


def random_pair(rng: random.Random, length: int, rate: float, vocabulary: int) -> tuple[list[int], list[int]]:
    original = [rng.randrange(vocabulary) for _ in range(length)]
    edited: list[int] = []
    for token in original:
        if rng.random() >= rate:
            edited.append(token)
            continue
        kind = rng.randrange(3)
        if kind != 0:
            edited.append(rng.randrange(vocabulary))
        if kind == 2:
            edited.append(token)
    return original, edited


def random_batch(seed: int, sizes: list[int], rate: float = 0.3, vocabulary: int = 50) -> tuple[list, list]:
    rng = random.Random(seed)
    pairs = [random_pair(rng, size, rate, vocabulary) for size in sizes]
    return [a for a, _ in pairs], [b for _, b in pairs]


def packed(sequences: list[list[int]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([0, *map(len, sequences)])
    return torch.tensor([t for s in sequences for t in s], dtype=dtype), lengths.cumsum(0)


def assert_same(actual: EditAlignment, expected: EditAlignment) -> None:
    for field in ("distance", "original_ops", "edited_ops", "original_cu_seqlens", "edited_cu_seqlens"):
        left, right = getattr(actual, field), getattr(expected, field)
        assert left.dtype == right.dtype, field
        assert torch.equal(left, right), field
