from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrl.data import EditedPair, PairEncoder, read_pairs

KINDS = ["byte_bpe", "with_bos", "metaspace", "bare", "slow"]
WORDS = st.lists(st.sampled_from(["the", "cat", "dogs", "unhappy", "reader's", "🤷"]), max_size=12).map(" ".join)
PAIRS = st.builds(
    EditedPair, WORDS, WORDS, WORDS, st.none() | st.just(()) | st.just(((0, 0),)), st.just(1)
)  # a span of the whole original is drawn in the tests that look at spans


@pytest.mark.parametrize("kind", KINDS)
def test_sides_are_tokenized_apart_from_the_prompt(kind, request):
    tokenizer = request.getfixturevalue(kind)
    pair = EditedPair("the unhap", "py cat", "py dogs", None, 1)
    (encoded,) = PairEncoder(tokenizer)([pair])
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    assert encoded.original_ids == tokenizer("py cat", add_special_tokens=False)["input_ids"] + eos
    assert encoded.edited_ids == tokenizer("py dogs", add_special_tokens=False)["input_ids"] + eos
    bos = [] if kind not in ("with_bos", "metaspace") else [tokenizer.bos_token_id]
    assert encoded.prompt_ids == bos + tokenizer("the unhap", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edit_unit", ["token", "word"])
@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(PAIRS, max_size=4), max_length=st.integers(1, 30), max_prompt=st.none() | st.integers(1, 10))
def test_truncation_keeps_the_response_and_its_labels(kind, edit_unit, pairs, max_length, max_prompt, request):
    tokenizer = request.getfixturevalue(kind)
    options = {"max_prompt_length": max_prompt, "edit_unit": edit_unit}
    whole = PairEncoder(tokenizer, max_length=None, edit_unit=edit_unit)(pairs)
    cut = PairEncoder(tokenizer, max_length=max_length, **options)(pairs)
    for full, short in zip(whole, cut, strict=True):
        for name in ("original_ids", "edited_ids", "original_edits", "edited_edits"):
            assert getattr(short, name) == getattr(full, name)[:max_length], "labels are cut, never computed anew"
        assert len(short.original_ids) == len(short.original_edits)
        assert len(short.edited_ids) == len(short.edited_edits)
        longest = max(len(short.original_ids), len(short.edited_ids))
        room = min(max_length - longest, max_prompt or max_length)
        assert len(short.prompt_ids) == min(room, len(full.prompt_ids)), "no prompt token is dropped without need"
        tail = short.prompt_ids[1:] if tokenizer.bos_token_id in short.prompt_ids[:1] else short.prompt_ids
        assert tail == full.prompt_ids[len(full.prompt_ids) - len(tail) :]


@pytest.mark.parametrize("kind", ["byte_bpe", "with_bos", "metaspace"])
def test_end_of_sequence_is_appended_once_and_never_an_edit(kind, request):
    tokenizer = request.getfixturevalue(kind)
    eos = tokenizer.eos_token
    rows = [
        EditedPair("", "the cat", f"the dogs{eos}", ((0, 7),), 1),
        EditedPair("", "", "", (), 2),
        EditedPair("", "the cat", "", None, 3),
    ]
    for encoded in PairEncoder(tokenizer)(rows):
        for ids, edits in (
            (encoded.original_ids, encoded.original_edits),
            (encoded.edited_ids, encoded.edited_edits),
        ):
            assert ids.count(tokenizer.eos_token_id) == 1
            assert ids[-1] == tokenizer.eos_token_id
            assert edits[-1] is False
        assert encoded.original_errors is None or encoded.original_errors[-1] is False
    (without, _, _) = PairEncoder(tokenizer, append_eos=False)(rows)
    assert tokenizer.eos_token_id not in without.original_ids


def test_identical_and_empty_sides(byte_bpe):
    same, empty, inserted = PairEncoder(byte_bpe, append_eos=False)(
        [EditedPair("p", "the cat", "the cat"), EditedPair("p", "", ""), EditedPair("p", "", "the cat")]
    )
    assert not any(same.original_edits + same.edited_edits)
    assert (empty.original_ids, empty.edited_ids, empty.original_edits) == ([], [], [])
    assert inserted.edited_edits == [True] * len(inserted.edited_ids)


def test_error_spans_reach_the_tokens(byte_bpe):
    text = "the unhappy cat"
    looked, clean, unknown = PairEncoder(byte_bpe)(
        [EditedPair("p", text, "", spans) for spans in (((4, 11),), (), None)]
    )
    flagged = [token for token, error in zip(looked.original_ids, looked.original_errors, strict=True) if error]
    assert byte_bpe.decode(flagged) == " unhappy"
    assert clean.original_errors == [False] * len(clean.original_ids)
    assert unknown.original_errors is None


def test_messages_as_prompt(byte_bpe):
    chat = [{"role": "user", "content": "the cat"}]
    (encoded,) = PairEncoder(byte_bpe)([EditedPair(chat, "the", "cat")])
    assert byte_bpe.decode(encoded.prompt_ids) == "<|user|>the cat<eos><|assistant|>"


@pytest.mark.parametrize("edit_unit", ["token", "word"])
def test_a_batch_equals_its_pairs_one_by_one(real_edits, byte_bpe, edit_unit):
    pairs = list(read_pairs(real_edits))[:30]
    encoder = PairEncoder(byte_bpe, edit_unit=edit_unit)
    assert encoder(pairs) == [encoded for pair in pairs for encoded in encoder([pair])]
    assert encoder([]) == []


@pytest.mark.slow
def test_real_edits_with_a_real_tokenizer(real_edits, smollm2):
    pairs = list(read_pairs(real_edits))
    exact, widened = (PairEncoder(smollm2, edit_unit=unit)(pairs) for unit in ("token", "word"))
    for pair, encoded, wide in zip(pairs, exact, widened, strict=True):
        assert smollm2.decode(encoded.original_ids[:-1]) == pair.original
        assert smollm2.decode(encoded.edited_ids[:-1]) == pair.edited
        assert all(b or not a for a, b in zip(encoded.original_edits, wide.original_edits, strict=True))
        assert all(b or not a for a, b in zip(encoded.edited_edits, wide.edited_edits, strict=True))
        assert any(encoded.original_errors) == bool(pair.error_spans)
    assert sum(map(sum, (w.original_edits for w in widened))) > sum(map(sum, (e.original_edits for e in exact)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length is 0; it must be at least 1, or None"),
        ({"max_prompt_length": 0}, "max_prompt_length is 0; it must be at least 1, or None"),
        ({"edit_unit": "char"}, "edit_unit is 'char'; it must be 'token' or 'word'"),
    ],
)
def test_bad_arguments(byte_bpe, options, message):
    with pytest.raises(ValueError, match=message):
        PairEncoder(byte_bpe, **options)
