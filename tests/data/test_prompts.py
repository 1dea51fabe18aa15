from __future__ import annotations

import pytest

from fgrl.data import PromptDataset, PromptEncoder, read_prompts

CHAT = [{"role": "user", "content": "the cat"}]


def test_text_gets_leading_special_tokens_and_no_trailing_ones(with_bos):
    (ids,) = PromptEncoder(with_bos)(["the cat"])
    assert with_bos("the cat")["input_ids"] == [*ids, with_bos.eos_token_id]
    assert ids[0] == with_bos.bos_token_id


def test_bos_is_never_doubled(with_bos, metaspace):
    for tokenizer in (with_bos, metaspace):
        spelled, plain, empty = PromptEncoder(tokenizer)([f"{tokenizer.bos_token}the cat", "the cat", ""])
        assert spelled.count(tokenizer.bos_token_id) == plain.count(tokenizer.bos_token_id) == 1
        assert empty == [tokenizer.bos_token_id]


def test_tokenizer_without_special_tokens(bare):
    text, empty = PromptEncoder(bare)(["the cat", ""])
    assert text == bare("the cat")["input_ids"]
    assert empty == []


def test_messages_go_through_the_chat_template_with_a_generation_prompt(byte_bpe):
    (ids,) = PromptEncoder(byte_bpe)([CHAT])
    assert byte_bpe.decode(ids) == "<|user|>the cat<eos><|assistant|>"
    assert ids == byte_bpe.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)


def test_a_final_assistant_message_is_continued(byte_bpe):
    (ids,) = PromptEncoder(byte_bpe)([[*CHAT, {"role": "assistant", "content": "the"}]])
    assert byte_bpe.decode(ids) == "<|user|>the cat<eos><|assistant|>the"


def test_the_template_alone_decides_about_bos(with_bos):
    template = "<bos>{{ messages[0]['content'] }}"
    (ids,) = PromptEncoder(with_bos, chat_template=template)([CHAT])
    assert ids.count(with_bos.bos_token_id) == 1
    (ids,) = PromptEncoder(with_bos, chat_template="{{ messages[0]['content'] }}")([CHAT])
    assert with_bos.bos_token_id not in ids


def test_text_and_messages_in_one_batch(byte_bpe):
    encode = PromptEncoder(byte_bpe)
    assert encode(["the cat", CHAT]) == [*encode(["the cat"]), *encode([CHAT])]
    assert encode([]) == []


def test_missing_and_refusing_templates(bare, byte_bpe):
    with pytest.raises(ValueError, match=r"chat_template is missing; it must be given"):
        PromptEncoder(bare)([CHAT])
    refuse = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"field 'prompt' is refused by the chat template .*roles must alternate"):
        PromptEncoder(byte_bpe, chat_template=refuse)([CHAT])


def test_truncation_from_the_left_keeps_bos(with_bos, bare):
    text = "the cat sat on the mat and the dogs"
    whole, cut = PromptEncoder(with_bos)([text])[0], PromptEncoder(with_bos, max_length=4)([text])[0]
    assert cut == [with_bos.bos_token_id, *whole[-3:]]
    assert PromptEncoder(with_bos, max_length=1)([text])[0] == whole[-1:]
    assert PromptEncoder(bare, max_length=4)([text])[0] == bare(text)["input_ids"][-4:]
    assert PromptEncoder(bare).truncate([1, 2, 3], 0) == []


@pytest.mark.slow
def test_smollm2_chat_prompt(smollm2):
    (ids,) = PromptEncoder(smollm2)([CHAT])
    assert smollm2.decode(ids).endswith("<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n")


def test_rows_keep_their_other_columns(write_jsonl):
    path = write_jsonl([{"question": "the cat", "answer": 3}, {"answer": 4}, {"prompt": CHAT, "extra": None}])
    reader = read_prompts(path, on_error="skip")
    assert list(reader) == [{"prompt": "the cat", "answer": 3}, {"prompt": CHAT, "extra": None}]
    assert reader.errors == [
        "pairs.jsonl, line 2: field 'prompt' is missing; it must be one of the row's, which are 'answer'"
    ]
    with pytest.raises(ValueError, match=r"list, row 1: field 'ask' is of type int; it must be text"):
        list(read_prompts([{"ask": 1}], columns={"prompt": "ask"}))


def test_dataset(write_jsonl, byte_bpe):
    path = write_jsonl([{"question": "the cat", "answer": number} for number in range(300)] + [{"prompt": CHAT}])
    dataset = PromptDataset(path, byte_bpe, max_prompt_length=3)
    assert len(dataset) == 301
    ids = byte_bpe("the cat")["input_ids"][-3:]
    assert dataset[299] == {"prompt": "the cat", "answer": 299, "prompt_ids": ids}
    assert dataset[-1]["prompt_ids"] == PromptEncoder(byte_bpe)([CHAT])[0][-3:]
    assert sum(1 for _ in dataset) == 301


def test_a_prompt_without_tokens_cannot_be_generated_from(byte_bpe, with_bos):
    with pytest.raises(ValueError, match="list, row 2: field 'prompt' is empty; it must have a token"):
        PromptDataset([{"prompt": "a"}, {"prompt": ""}], byte_bpe)
    dataset = PromptDataset([{"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}], byte_bpe, on_error="skip")
    assert [row["prompt"] for row in dataset] == ["a", "b"]
    assert dataset.skipped == 1
    assert len(PromptDataset([{"prompt": ""}], with_bos)) == 1
