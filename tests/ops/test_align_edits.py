"""`fgrl.align_edits` against rapidfuzz, against the tie rule written out on a full table, and across backends."""

from __future__ import annotations

import difflib
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fgrl
from fgrl import EditAlignment, EditOp, extension, reference

rapidfuzz = pytest.importorskip("rapidfuzz.distance.Levenshtein")
needs_extension = pytest.mark.skipif(not extension.available(), reason=str(extension.why_not()))
backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_extension)])

HUMAN_EDITS = Path(__file__).parents[2].parent / "shared" / "data" / "qa_feedback_edits.jsonl"


def token_pairs(alphabet: int, max_size: int = 40) -> st.SearchStrategy[tuple[list[int], list[int]]]:
    tokens = st.lists(st.integers(0, alphabet - 1), max_size=max_size)
    return st.tuples(tokens, tokens)


# Few distinct tokens make many ties; many make few matches.
any_pairs = st.integers(1, 60).flatmap(token_pairs)


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


def assert_same(actual: EditAlignment, expected: EditAlignment) -> None:
    for field in ("distance", "original_ops", "edited_ops", "original_cu_seqlens", "edited_cu_seqlens"):
        left, right = getattr(actual, field), getattr(expected, field)
        assert left.dtype == right.dtype, field
        assert torch.equal(left, right), field


def packed(sequences: list[list[int]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([0, *map(len, sequences)])
    return torch.tensor([t for s in sequences for t in s], dtype=dtype), lengths.cumsum(0)


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
@pytest.mark.parametrize("cpu", [1, 2, 3], ids=["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("algorithm", [0, 1, 2, 3], ids=["auto", "wavefront", "bit-parallel", "small"])
def test_every_algorithm_and_instruction_set_gives_the_same_labels(algorithm: int, cpu: int) -> None:
    # Sizes around a word, a vector of words (256 and 512 rows) and a block of columns (1024); an instruction set that
    # this CPU lacks falls back to the one below it.
    sizes = [0, 1, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 700, 1023, 1024, 1025, 2100]
    pairs = [random_pair(random.Random(size), size, rate, v) for size in sizes for rate in (0.05, 0.5) for v in (2, 90)]
    pairs += [(b, a) for a, b in pairs[:20]] + [(a, b[: len(b) // 3]) for a, b in pairs]
    a, b = packed([a for a, _ in pairs], torch.int32), packed([b for _, b in pairs], torch.int32)
    expected = reference.align_edits(a, b)
    for dtype in (torch.int32, torch.int64):
        result = torch.ops.fgrl.align_edits(a[0].to(dtype), a[1], b[0].to(dtype), b[1], 1, algorithm, cpu)
        for ours, theirs in zip(result, (expected.distance, expected.original_ops, expected.edited_ops), strict=True):
            assert torch.equal(ours, theirs)


@needs_extension
def test_a_huge_pair_with_nothing_in_common_stays_small() -> None:
    code = """
import resource, torch, fgrl
a, b = torch.arange(131072), torch.arange(131072, 262144)
cu = torch.tensor([0, 131072])
fgrl.align_edits((a[:64], cu.clamp(max=64)), (b[:64], cu.clamp(max=64)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
alignment = fgrl.align_edits((a, cu), (b, cu), num_threads=1)
assert alignment.distance.item() == 131072 and alignment.original_ops.eq(1).all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 1024, "MiB"


@needs_extension
@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(token_pairs(4, 100), max_size=8), threads=st.sampled_from([1, 2, 5]))
def test_threads_widths_and_input_forms_do_not_change_a_bit(pairs: list, threads: int) -> None:
    np = pytest.importorskip("numpy")
    a, b = [p for p, _ in pairs], [q for _, q in pairs]
    expected = fgrl.align_edits(a, b)
    forms = [
        (packed(a, torch.int32), packed(b, torch.int32)),
        (packed(a, torch.int64), packed(b, torch.int32)),
        (tuple(t.numpy() for t in packed(a, torch.int64)), tuple(t.numpy() for t in packed(b, torch.int64))),
        ([np.array(s, dtype=np.int32) for s in a], [np.array(s, dtype=np.int64) for s in b]),
        ([torch.tensor(s, dtype=torch.int64) for s in a], [tuple(s) for s in b]),
    ]
    for original, edited in forms:
        assert_same(fgrl.align_edits(original, edited, num_threads=threads), expected)


@backends
def test_noncontiguous_input_is_read_by_its_strides(backend: str) -> None:
    a, b = packed([[1, 2, 3], [4]], torch.int64), packed([[1, 3], [5]], torch.int64)
    spread = torch.full((4, 2), 77)
    spread[:, 0] = a[0]
    with fgrl.use_backend(backend):
        assert_same(fgrl.align_edits((spread[:, 0], a[1]), b), fgrl.align_edits(a, b))


@backends
def test_ids_that_differ_only_above_32_bits_are_different(backend: str) -> None:
    with fgrl.use_backend(backend):
        alignment = fgrl.align_edits([[1 + (1 << 32), 2, -1]], [[1, 2, (1 << 32) - 1]])
    assert alignment.distance.tolist() == [2]


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


TOKENS = torch.tensor([1, 2, 3])
BAD_INPUT = [
    pytest.param([[1.5]], "original has dtype torch.float32; it must hold integers", id="float-list"),
    pytest.param([[True]], "original has dtype torch.bool", id="bool"),
    pytest.param([["a"]], "original holds something that is not a token id", id="text"),
    pytest.param([[[1]]], "original has shape", id="nested"),
    pytest.param([[1 << 63]], "original holds something that is not a token id", id="beyond-int64"),
    pytest.param([1, 2], "original is a flat sequence", id="flat-list"),
    pytest.param("abc", "original is a str", id="str"),
    pytest.param(TOKENS, "original is a Tensor", id="bare-tensor"),
    pytest.param(5, "original is a int", id="number"),
    pytest.param([TOKENS.float()], r"original\[0\] has dtype torch.float32", id="float-tensor"),
    pytest.param([TOKENS[None]], r"original\[0\] has shape \[1, 3\]; it must be 1-D", id="2-d-tensor"),
    pytest.param([TOKENS.to("meta")], r"original\[0\] is on meta; it must be on the CPU", id="device"),
    pytest.param((TOKENS, torch.tensor([])), "cu_seqlens has dtype torch.float32", id="bounds-dtype"),
    pytest.param((TOKENS, torch.tensor([], dtype=torch.int32)), "cu_seqlens is empty", id="bounds-empty"),
    pytest.param((TOKENS, torch.tensor([1, 3])), "cu_seqlens starts at 1; it must start at 0", id="bounds-start"),
    pytest.param((TOKENS, torch.tensor([0, 2])), "ends at 2; it must end at the number of tokens, 3", id="bounds-end"),
    pytest.param((TOKENS, torch.tensor([[0, 3]])), r"cu_seqlens has shape \[1, 2\]", id="bounds-2-d"),
    pytest.param([[1], [2]], "original has 2 sequences and edited has 1", id="batch"),
]


@pytest.mark.parametrize(("original", "message"), BAD_INPUT)
def test_bad_input_is_named(original: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fgrl.align_edits(original, [[1]])


@backends
def test_a_negative_length_is_named(backend: str) -> None:
    with fgrl.use_backend(backend), pytest.raises(ValueError, match="original cu_seqlens decreases after entry 1"):
        fgrl.align_edits((TOKENS, torch.tensor([0, 4, 3])), [[1], [1]])


@pytest.mark.parametrize("threads", [0, -1])
def test_num_threads_must_be_positive(threads: int) -> None:
    with pytest.raises(ValueError, match=f"num_threads is {threads}; it must be at least 1"):
        fgrl.align_edits([[1]], [[1]], num_threads=threads)


@needs_extension
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((TOKENS, torch.tensor([0, 5]), TOKENS, torch.tensor([0, 3])), "end at the number", id="bounds"),
        pytest.param((TOKENS, torch.tensor([0, 3]), TOKENS.int(), torch.tensor([0, 3])), "one dtype", id="dtypes"),
        pytest.param((TOKENS[::2], torch.tensor([0, 2]), TOKENS, torch.tensor([0, 3])), "contiguous", id="strides"),
        pytest.param((TOKENS.short(), torch.tensor([0, 3])) * 2, "int32 or int64", id="int16"),
    ],
)
def test_the_op_itself_stays_within_bounds(arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fgrl.align_edits(*arguments, 1)


@needs_extension
def test_the_op_passes_opcheck_and_compiles() -> None:
    a, b = packed([[1, 2, 3], [4]], torch.int64), packed([[1, 3], [5]], torch.int64)
    torch.library.opcheck(torch.ops.fgrl.align_edits.default, (*a, *b, 1))

    @torch.compile(fullgraph=True, backend="eager", dynamic=True)
    def edited_tokens(original: Tensor, edited: Tensor) -> Tensor:
        return torch.ops.fgrl.align_edits(original, a[1], edited, b[1], 1)[1] != 0

    assert edited_tokens(a[0], b[0]).tolist() == [False, True, False, True]


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_extension
@pytest.mark.usefixtures("two_torch_threads")
def test_threads_do_not_change_the_labels_of_a_large_batch() -> None:
    # A small batch runs on one thread whatever is asked for.
    a, b = random_batch(seed=5, sizes=[40, 90, 250, 700] * 200, rate=0.2)
    expected = fgrl.align_edits(a, b, num_threads=1)
    for threads in (2, 7, None):
        assert_same(fgrl.align_edits(a, b, num_threads=threads), expected)


@needs_extension
@pytest.mark.usefixtures("two_torch_threads")
def test_several_python_threads_may_call_at_once() -> None:
    batches = [random_batch(seed, sizes=[100] * 400) for seed in range(4)]
    expected = [fgrl.align_edits(*batch) for batch in batches]
    results: dict[int, EditAlignment] = {}

    def work(index: int) -> None:
        results[index] = fgrl.align_edits(*batches[index], num_threads=2)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        assert_same(results[index], expected[index])


@needs_extension
def test_other_python_threads_run_meanwhile() -> None:
    ticks, done = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.001):
            ticks += 1

    a, b, cu_seqlens = torch.arange(65536), torch.arange(65536, 131072), torch.tensor([0, 65536])
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        time.sleep(0.05)
        before = ticks
        fgrl.align_edits((a, cu_seqlens), (b, cu_seqlens), num_threads=1)
        during = ticks - before
    finally:
        done.set()
        thread.join()
    assert during > 5, "the op held the GIL"
