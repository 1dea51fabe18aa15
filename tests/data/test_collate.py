from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrl.data import EncodedPair, PairCollator, pad_token_id

PAD = 99


@st.composite
def encoded_pairs(draw):
    def ids():
        return draw(st.lists(st.integers(0, 50), max_size=6))

    def flags(values):
        return draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))

    prompt, original, edited = ids(), ids(), ids()
    errors = draw(st.booleans())
    return EncodedPair(prompt, original, edited, flags(original), flags(edited), flags(original) if errors else None)


PAIRS = st.lists(encoded_pairs(), min_size=1, max_size=5)


def rows_of(pairs):
    """What each of the 2B sequences must be, straight from the definition."""
    for pair in pairs:
        yield pair.prompt_ids, pair.edited_ids, pair.edited_edits, [False] * len(pair.edited_ids), False
    for pair in pairs:
        looked = pair.original_errors is not None
        errors = pair.original_errors or [False] * len(pair.original_ids)
        yield pair.prompt_ids, pair.original_ids, pair.original_edits, errors, looked


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS, multiple=st.sampled_from([None, 1, 4]))
def test_padded(pairs, multiple):
    batch = PairCollator(PAD, pad_to_multiple_of=multiple)(pairs)
    rows = list(rows_of(pairs))
    longest = max(len(prompt) + len(response) for prompt, response, *_ in rows)
    width = batch["input_ids"].shape[1]
    assert width == max(-(-longest // (multiple or 1)), 1) * (multiple or 1)
    assert batch["has_errors"].tolist() == [looked for *_, looked in rows]
    for index, (prompt, response, edits, errors, _) in enumerate(rows):
        size = len(prompt) + len(response)
        outside, rest = [False] * len(prompt), width - size
        assert batch["input_ids"][index].tolist() == prompt + response + [PAD] * rest
        assert batch["attention_mask"][index].tolist() == [1] * size + [0] * rest
        assert batch["response_mask"][index].tolist() == outside + [True] * len(response) + [False] * rest
        assert batch["edits"][index].tolist() == outside + edits + [False] * rest
        assert batch["error_mask"][index].tolist() == outside + errors + [False] * rest


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS)
def test_packed_equals_padded_after_unpacking(pairs):
    padded, packed = PairCollator(PAD)(pairs), PairCollator(PAD, packed=True)(pairs)
    assert set(packed) == {*padded, "position_ids", "cu_seqlens"}
    bounds = packed["cu_seqlens"].tolist()
    assert packed["cu_seqlens"].dtype == torch.int32
    assert bounds[0] == 0
    assert len(bounds) == 2 * len(pairs) + 1
    assert packed["input_ids"].shape == packed["position_ids"].shape == (1, bounds[-1])
    assert torch.equal(packed["has_errors"], padded["has_errors"])
    for index, (start, end) in enumerate(pairwise(bounds)):
        length = int(padded["attention_mask"][index].sum())
        assert end - start == length
        assert packed["position_ids"][0, start:end].tolist() == list(range(length))
        for name in ("input_ids", "response_mask", "edits", "error_mask"):
            assert packed[name].dtype == padded[name].dtype
            assert torch.equal(packed[name][0, start:end], padded[name][index, :length])


def test_dtypes():
    pair = EncodedPair([1], [2], [3], [True], [True])
    dtypes = {name: value.dtype for name, value in PairCollator(PAD)([pair]).items()}
    assert dtypes["input_ids"] == dtypes["attention_mask"] == torch.int64
    assert {dtypes[name] for name in ("response_mask", "edits", "error_mask", "has_errors")} == {torch.bool}


def test_packed_sequences_do_not_see_each_other():
    """Hugging Face models separate packed sequences only without a mask and without a cache."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    pairs = [
        EncodedPair([1, 2], [3, 4, 5], [6], [True] * 3, [True]),
        EncodedPair([7], [8], [9, 10], [True], [True] * 2),
    ]
    padded, packed = PairCollator(0)(pairs), PairCollator(0, packed=True)(pairs)
    names = ("input_ids", "attention_mask", "position_ids")
    with torch.no_grad():
        expected = model(**{name: padded[name] for name in names if name in padded}, use_cache=False).logits
        logits = model(**{name: packed[name] for name in names}, use_cache=False).logits[0]
    assert torch.allclose(logits, expected[padded["attention_mask"].bool()], atol=1e-5)


def test_pad_token_of_any_tokenizer(byte_bpe, metaspace, bare):
    assert pad_token_id(byte_bpe) == byte_bpe.pad_token_id
    assert pad_token_id(metaspace) == metaspace.eos_token_id
    assert pad_token_id(bare) == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="pad_token_id is None; it must be a token id"):
        PairCollator(None)
    with pytest.raises(ValueError, match=r"pad_to_multiple_of is .*; it must be at least 1"):
        PairCollator(0, packed=True, pad_to_multiple_of=8)
    with pytest.raises(ValueError, match="at least one pair"):
        PairCollator(0)([])
