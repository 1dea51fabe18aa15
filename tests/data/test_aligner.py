from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrl.data import EditedPair, HuggingFaceTokenizer, PlainTokenizer, ResponseAligner, read_pairs

TEXT = st.text(alphabet="ab c.é🤷\n", max_size=20)


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT), max_size=5))
@pytest.mark.parametrize("kind", ["plain", "byte_bpe"])
def test_opcodes_turn_one_side_into_the_other_and_labels_agree(kind, rows, request):
    tokenizer = PlainTokenizer() if kind == "plain" else HuggingFaceTokenizer(request.getfixturevalue(kind))
    pairs = [EditedPair("", original, edited) for original, edited in rows]
    aligned = ResponseAligner(tokenizer)(pairs)
    assert [pair.pair for pair in aligned] == pairs
    for pair in aligned:
        built, original_labels, edited_labels = [], [], []
        for tag, i1, i2, j1, j2 in pair.opcodes:
            built += pair.original.ids[i1:i2] if tag == "equal" else pair.edited.ids[j1:j2]
            original_labels += [tag != "equal"] * (i2 - i1)
            edited_labels += [tag != "equal"] * (j2 - j1)
        assert built == pair.edited.ids
        assert original_labels == pair.original_edits
        assert edited_labels == pair.edited_edits
        assert pair.distance >= abs(len(pair.original.ids) - len(pair.edited.ids))
        assert (pair.distance == 0) == (pair.original.ids == pair.edited.ids)


def test_a_batch_equals_its_pairs_one_by_one(real_edits):
    pairs = list(read_pairs(real_edits))[:40]
    align = ResponseAligner(PlainTokenizer())
    for pair, together in zip(pairs, align(pairs), strict=True):
        (alone,) = align([pair])
        assert (alone.distance, alone.opcodes) == (together.distance, together.opcodes)
        assert alone.original_edits == together.original_edits
        assert alone.original_errors == together.original_errors


def test_edit_unit_is_checked():
    with pytest.raises(ValueError, match="edit_unit is 'char'; it must be 'token' or 'word'"):
        ResponseAligner(PlainTokenizer(), edit_unit="char")
