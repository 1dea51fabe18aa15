"""`fgrl.align_edits` against rapidfuzz, against the tie rule written out on a full table, and across backends."""

from __future__ import annotations

import difflib
import json
import random
import re
from pathlib import Path

import pytest
import torch
from edits import assert_same, backends, needs_extension, packed, random_batch, random_pair, token_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

import fgrl
from fgrl import EditAlignment, EditOp, reference

rapidfuzz = pytest.importorskip("rapidfuzz.distance.Levenshtein")

HUMAN_EDITS = Path(__file__).parents[2].parent / "shared" / "data" / "qa_feedback_edits.jsonl"

# Few distinct tokens make many ties; many make few matches.
any_pairs = st.integers(1, 60).flatmap(token_pairs)


def distance_table(a: list[int], b: list[int]) -> list[list[int]]:
    table = [list(range(len(b) + 1))]
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(table[-1][j - 1] if x == y else 1 + min(table[-1][j - 1], table[-1][j], row[-1]))
        table.append(row)
    return table


def kept_by_rule(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    """The kept pairs by the rule of `fgrl.reference.align_edits`, read off the full table."""
    table = distance_table(a, b)
    i, j, in_run, kept = len(a), len(b), False, []
    while i or j:
        equal = i > 0 and j > 0 and a[i - 1] == b[j - 1]
        cheaper = table[i][j] - 1
        if equal and not in_run:
            step = None
        elif i and j and not equal and table[i - 1][j - 1] == cheaper:
            step = (1, 1)
        elif i and table[i - 1][j] == cheaper:
            step = (1, 0)
        elif j and table[i][j - 1] == cheaper:
            step = (0, 1)
        else:
            step = None
        if step is None:
            kept.append((i - 1, j - 1))
        i, j, in_run = i - (step or (1, 1))[0], j - (step or (1, 1))[1], step is not None
    return kept[::-1]


def kept_pairs(alignment: EditAlignment, index: int) -> list[tuple[int, int]]:
    blocks = [block for block in alignment.opcodes(index) if block.tag == "equal"]
    return [(i, b.dest_start + i - b.src_start) for b in blocks for i in range(b.src_start, b.src_end)]


def apply_opcodes(opcodes: list, original: list[int], edited: list[int]) -> list[int]:
    result = []
    for tag, i1, i2, j1, j2 in opcodes:
        result += original[i1:i2] if tag == "equal" else edited[j1:j2]
    return result


def edit_runs(alignment: EditAlignment) -> int:
    return sum(block.tag != "equal" for i in range(len(alignment)) for block in alignment.opcodes(i))


@backends
@settings(deadline=None)
@given(pair=any_pairs)
def test_labels_follow_the_rule_and_the_distance_is_rapidfuzz(backend: str, pair: tuple) -> None:
    a, b = pair
    with fgrl.use_backend(backend):
        alignment = fgrl.align_edits([a], [b])
        swapped = fgrl.align_edits([b], [a])
    distance = rapidfuzz.distance(a, b)
    assert alignment.distance.tolist() == swapped.distance.tolist() == [distance]
    assert kept_pairs(alignment, 0) == kept_by_rule(a, b)
    assert apply_opcodes(alignment.opcodes(0), a, b) == b
    cost = [max(block[2] - block[1], block[4] - block[3]) for block in alignment.opcodes(0) if block[0] != "equal"]
    assert sum(cost) == distance


@backends
@settings(deadline=None)
@given(pair=any_pairs)
def test_labels_and_opcodes_agree(backend: str, pair: tuple) -> None:
    with fgrl.use_backend(backend):
        alignment = fgrl.align_edits([pair[0]], [pair[1]])
    original, edited = alignment.original_ops.tolist(), alignment.edited_ops.tolist()
    for tag, i1, i2, j1, j2 in alignment.opcodes(0):
        both = 0 if tag == "equal" else min(i2 - i1, j2 - j1)
        rest = EditOp.KEEP if tag == "equal" else EditOp.DELETE
        assert original[i1:i2] == [EditOp.SUBSTITUTE] * both + [rest] * (i2 - i1 - both)
        rest = EditOp.KEEP if tag == "equal" else EditOp.INSERT
        assert edited[j1:j2] == [EditOp.SUBSTITUTE] * both + [rest] * (j2 - j1 - both)


@needs_extension
@settings(deadline=None)
@given(prefix=st.lists(st.integers(0, 2), max_size=20), pair=token_pairs(3, 30))
def test_the_common_prefix_takes_part_in_ties(prefix: list[int], pair: tuple) -> None:
    # C++ strips the prefix and the reference does not, so a run that slides left into it shows a wrong account.
    a, b = prefix + pair[0], prefix + pair[1]
    with fgrl.use_backend("cpp"):
        fast = fgrl.align_edits([a], [b])
    with fgrl.use_backend("reference"):
        assert_same(fast, fgrl.align_edits([a], [b]))


@needs_extension
@pytest.mark.parametrize("vocabulary", [2, 50, 50_000], ids=["ties", "text", "large-vocabulary"])
@pytest.mark.parametrize("rate", [0.0, 0.02, 0.3, 1.0])
def test_cpp_equals_reference_around_every_block_edge(vocabulary: int, rate: float) -> None:
    sizes = [size for edge in (0, 64, 128, 192, 256) for size in range(max(edge - 2, 0), edge + 3)] + [300]
    a, b = random_batch(seed=vocabulary, sizes=sizes, rate=rate, vocabulary=vocabulary)
    with fgrl.use_backend("cpp"):
        fast = fgrl.align_edits(a, b)
    with fgrl.use_backend("reference"):
        assert_same(fast, fgrl.align_edits(a, b))


@needs_extension
@pytest.mark.usefixtures("each_cpu_capability")
@pytest.mark.parametrize("algorithm", [0, 1, 2, 3], ids=["auto", "wavefront", "bit-parallel", "small"])
def test_every_algorithm_and_instruction_set_gives_the_same_labels(algorithm: int) -> None:
    # Sizes around a word, a vector of words (256 and 512 rows) and a block of columns (1024).
    sizes = [0, 1, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 700, 1023, 1024, 1025, 2100]
    pairs = [random_pair(random.Random(size), size, rate, v) for size in sizes for rate in (0.05, 0.5) for v in (2, 90)]
    pairs += [(b, a) for a, b in pairs[:20]] + [(a, b[: len(b) // 3]) for a, b in pairs]
    a, b = packed([a for a, _ in pairs], torch.int32), packed([b for _, b in pairs], torch.int32)
    expected = reference.align_edits(a, b)
    for dtype in (torch.int32, torch.int64):
        result = torch.ops.fgrl.align_edits(a[0].to(dtype), a[1], b[0].to(dtype), b[1], 1, algorithm)
        for ours, theirs in zip(result, (expected.distance, expected.original_ops, expected.edited_ops), strict=True):
            assert torch.equal(ours, theirs)


@backends
@pytest.mark.parametrize(
    ("original", "edited", "original_ops", "edited_ops"),
    [
        pytest.param([], [], [], [], id="both-empty"),
        pytest.param([], [1, 2], [], [3, 3], id="all-inserted"),
        pytest.param([1, 2], [], [2, 2], [], id="all-deleted"),
        pytest.param([1, 2], [1, 2], [0, 0], [0, 0], id="equal"),
        pytest.param([1, 2], [3, 4], [1, 1], [1, 1], id="nothing-in-common"),
        pytest.param([7, 7, 7], [7, 7], [2, 0, 0], [0, 0], id="leftmost-of-repeated-tokens"),
        pytest.param([1, 9, 1, 8, 2], [1, 2], [0, 2, 2, 2, 0], [0, 0], id="one-run-not-two"),
        pytest.param([1, 2, 3, 4], [1, 9, 4], [0, 1, 2, 0], [0, 1, 0], id="substitute-then-delete"),
    ],
)
def test_known_alignments(backend: str, original: list, edited: list, original_ops: list, edited_ops: list) -> None:
    with fgrl.use_backend(backend):
        alignment = fgrl.align_edits([original], [edited])
    assert alignment.original_ops.tolist() == original_ops
    assert alignment.edited_ops.tolist() == edited_ops


def naive_runs(a: list[int], b: list[int]) -> int:
    """Edit runs of the usual back-trace: keep when equal, else the first cheapest of substitute, delete, insert."""
    table, i, j, runs, in_run = distance_table(a, b), len(a), len(b), 0, False
    while i or j:
        equal = i > 0 and j > 0 and a[i - 1] == b[j - 1]
        if equal or (i and j and table[i - 1][j - 1] + 1 == table[i][j]):
            step = (1, 1)
        else:
            step = (1, 0) if i and table[i - 1][j] + 1 == table[i][j] else (0, 1)
        runs += not equal and not in_run
        i, j, in_run = i - step[0], j - step[1], not equal
    return runs


def test_fewer_edit_runs_than_a_naive_back_trace_on_repeated_tokens() -> None:
    a, b = random_batch(seed=3, sizes=[60] * 40, rate=0.5, vocabulary=5)
    assert edit_runs(fgrl.align_edits(a, b)) < 0.97 * sum(map(naive_runs, a, b))


@pytest.mark.skipif(not HUMAN_EDITS.exists(), reason="the human edits are not part of the project")
def test_fewer_edit_runs_than_a_naive_back_trace_on_human_edits() -> None:
    a, b = human_edits(60)
    assert edit_runs(fgrl.align_edits(a, b)) < 0.97 * sum(map(naive_runs, a, b))


def human_edits(limit: int) -> tuple[list[list[int]], list[list[int]]]:
    vocabulary: dict[str, int] = {}

    def ids(text: str) -> list[int]:
        return [vocabulary.setdefault(word, len(vocabulary)) for word in re.findall(r"\w+|[^\w\s]", text)]

    with HUMAN_EDITS.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(limit), strict=False)]
    return [ids(row["original"]) for row in rows], [ids(row["edited"]) for row in rows]


@settings(deadline=None)
@given(pair=any_pairs)
def test_opcodes_serve_code_written_for_difflib_and_rapidfuzz(pair: tuple) -> None:
    a, b = pair
    opcodes = fgrl.align_edits([a], [b]).opcodes(0)
    matcher = difflib.SequenceMatcher(None, a, b)
    matcher.opcodes = list(opcodes)  # difflib reads its own cached opcodes from here, and edits them
    grouped = [block for group in matcher.get_grouped_opcodes(n=len(a) + 1) for block in group]
    assert grouped == (opcodes if a != b else [])
    theirs = rapidfuzz.opcodes([1], [2])[0]
    for block in opcodes:
        assert [name for name in block._fields if not hasattr(theirs, name)] == []
        assert tuple(getattr(block, name) for name in block._fields) == tuple(block)


def test_padded() -> None:
    alignment = fgrl.align_edits([[1, 2, 3], []], [[1, 3], [4]])
    assert alignment.padded("original", 4).tolist() == [[0, 2, 0, 0], [0, 0, 0, 0]]
    assert alignment.padded("edited").tolist() == [[0, 0], [3, 0]]
    assert alignment.padded("edited").dtype == torch.uint8
    assert fgrl.align_edits([], []).padded("original", 3).shape == (0, 3)
    with pytest.raises(ValueError, match="length is 2; it must be at least 3, the longest original sequence"):
        alignment.padded("original", 2)
    with pytest.raises(ValueError, match="side is 'chosen'"):
        alignment.padded("chosen", 4)  # type: ignore[arg-type]


def test_length_and_index() -> None:
    alignment = fgrl.align_edits([[1], [2]], [[1], [3]])
    assert len(alignment) == 2
    assert alignment.opcodes(-1) == [("replace", 0, 1, 0, 1)]
    with pytest.raises(IndexError, match="index is 2"):
        alignment.opcodes(2)
