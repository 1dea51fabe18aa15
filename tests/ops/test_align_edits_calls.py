"""`fgrl.align_edits` as it is called: forms of input, bad input, memory, threads, and the operator behind it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from edits import assert_same, backends, needs_extension, packed, random_batch, token_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fgrl
from fgrl import EditAlignment


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
        during = 0
        for _ in range(200):  # on a busy machine the thread may sleep through a call or two
            before = ticks
            fgrl.align_edits((a, cu_seqlens), (b, cu_seqlens), num_threads=1)
            during = max(during, ticks - before)
            if during > 5:
                break
    finally:
        done.set()
        thread.join()
    assert during > 5, "the op held the GIL"
