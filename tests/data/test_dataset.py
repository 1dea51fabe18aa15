from __future__ import annotations

import json
import logging
import tracemalloc

import pytest
from torch.utils.data import DataLoader

from fgrl.data import EncodedPair, PairCollator, PairDataset, PairEncoder, StreamingPairDataset, read_pairs


def encode_lines(pairs):
    """An encoder that shows which row became which item."""
    return [EncodedPair([pair.line], [1], [2, 3], [True], [False, True], None) for pair in pairs]


def lines(items):
    return [item.prompt_ids[0] for item in items]


@pytest.fixture
def rows():
    return [{"prompt": "p", "original": f"a {number}", "edited": "b"} for number in range(50)]


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_in_memory_dataset_is_a_list_of_what_the_encoder_gives(rows, byte_bpe, batch_size):
    encoder = PairEncoder(byte_bpe, max_length=128)
    spans = (None, [], [[0, 1]])
    rows = [{**row, "error_spans": spans[at % 3]} for at, row in enumerate(rows[:20])]
    expected = encoder(list(read_pairs(rows)))
    dataset = PairDataset(rows, encoder, batch_size=batch_size)
    assert len(dataset) == 20
    assert list(dataset) == expected
    assert dataset[-1] == expected[-1]
    assert dataset[3:7] == expected[3:7]
    with pytest.raises(IndexError, match=r"index is 20; it must be in \[-20, 20\)"):
        dataset[20]


def test_in_memory_dataset_counts_bad_rows(write_jsonl, rows):
    path = write_jsonl([*rows[:3], b"?", *rows[3:5]])
    dataset = PairDataset(path, encode_lines, on_error="skip")
    assert (lines(dataset), dataset.skipped) == ([1, 2, 3, 5, 6], 1)
    assert "line 4" in dataset.errors[0]
    with pytest.raises(ValueError, match="line 4"):
        PairDataset(path, encode_lines)


@pytest.mark.parametrize("kind", [PairDataset, StreamingPairDataset])
def test_a_row_that_the_chat_template_refuses_is_a_bad_row(byte_bpe, rows, kind):
    chats = [
        {**row, "prompt": [{"role": "system" if at == 3 else "user", "content": "hi"}]} for at, row in enumerate(rows)
    ]
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}<bos>"
    encoder = PairEncoder(byte_bpe, chat_template=refuse)
    with pytest.raises(ValueError, match=r"list, row 4: field 'prompt' is refused by the chat template \(no system\)"):
        list(kind(chats, encoder))
    dataset = kind(chats, encoder, on_error="skip")
    assert len(list(dataset)) == 49
    assert dataset.skipped == 1


def test_stream_equals_the_dataset_in_memory(real_edits, byte_bpe):
    encoder = PairEncoder(byte_bpe, max_length=128)
    assert list(StreamingPairDataset(real_edits, encoder)) == list(PairDataset(real_edits, encoder))


def test_shuffle_changes_with_the_epoch_and_loses_nothing(rows):
    dataset = StreamingPairDataset(rows, encode_lines, shuffle_buffer=8, seed=3)
    first, again = lines(dataset), lines(dataset)
    dataset.set_epoch(1)
    second = lines(dataset)
    assert first == again != second
    assert sorted(first) == sorted(second) == list(range(1, 51))
    assert first != list(range(1, 51))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shuffle_buffer", [0, 8])
def test_workers_share_the_rows(write_jsonl, rows, workers, shuffle_buffer):
    path = write_jsonl([*rows[:10], b"?", *rows[10:]])
    dataset = StreamingPairDataset(path, encode_lines, on_error="skip", batch_size=4, shuffle_buffer=shuffle_buffer)
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=PairCollator(0))
    for _ in range(2):
        seen = [int(batch["input_ids"][at, 0]) for batch in loader for at in range(len(batch["input_ids"]) // 2)]
        assert sorted(seen) == [line for line in range(1, 52) if line != 11]


def test_persistent_workers_see_a_new_epoch(rows):
    dataset = StreamingPairDataset(rows, encode_lines, shuffle_buffer=50)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    first = lines(loader)
    dataset.set_epoch(1)
    assert lines(loader) != first


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_their_workers_share_the_rows(rows, processes, workers):
    dataset = StreamingPairDataset(rows, encode_lines, shuffle_buffer=4)
    seen = []
    for rank in range(processes):
        seen += lines(DataLoader(dataset.shard(processes, rank), batch_size=None, num_workers=workers))
    assert sorted(seen) == list(range(1, 51))


@pytest.mark.parametrize("processes", [2, 3])
def test_accelerate_divides_the_stream_without_loss(rows, processes):
    data_loader = pytest.importorskip("accelerate.data_loader")
    dataset = StreamingPairDataset(rows[:48], encode_lines, shuffle_buffer=4)
    loader = DataLoader(dataset, batch_size=4, collate_fn=list)
    seen = []
    for rank in range(processes):
        prepared = data_loader.prepare_data_loader(
            loader, num_processes=processes, process_index=rank, put_on_device=False, dispatch_batches=False
        )
        prepared.synchronized_generator = None
        prepared.rng_types = None
        seen += [line for batch in prepared for line in lines(batch)]
    assert sorted(seen) == list(range(1, 49))


def test_a_pass_that_skipped_rows_says_so(write_jsonl, rows, caplog):
    dataset = StreamingPairDataset(write_jsonl([b"?", *rows]), encode_lines, on_error="skip")
    with caplog.at_level(logging.WARNING):
        assert len(list(dataset)) == 50
    assert "Skipped 1 bad rows of pairs.jsonl; the first: pairs.jsonl, line 1" in caplog.text
    assert dataset.skipped == 1


def test_streaming_memory_does_not_grow_with_the_file(tmp_path):
    def peak(count):
        path = tmp_path / f"{count}.jsonl"
        with open(path, "w") as file:
            for number in range(count):
                file.write(json.dumps({"prompt": "p" * 200, "original": f"a{number}", "edited": "b"}) + "\n")
        dataset = StreamingPairDataset(path, encode_lines, shuffle_buffer=64)
        tracemalloc.start()
        try:
            assert sum(1 for _ in dataset) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(1_000), peak(8_000)
    assert large < small + 100_000, "eight times the rows, 1.6 MB more on disk"


def test_bad_arguments(rows):
    with pytest.raises(ValueError, match="shuffle_buffer is -1; it must be at least 0"):
        StreamingPairDataset(rows, encode_lines, shuffle_buffer=-1)
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        StreamingPairDataset(rows, encode_lines, batch_size=0)
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        PairDataset(rows, encode_lines, batch_size=0)
