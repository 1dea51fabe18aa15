"""A scorer that does not fit the policy is refused before it meets a token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fgrl.models import TokenRewardModel  # noqa: E402
from fgrl.models.adapters import unwrapped  # noqa: E402
from fgrl.models.fit import check_scorer, check_token_ids, check_vocabulary, vocabulary_rows  # noqa: E402


def causal_lm(rows: int = 96, context: int = 64) -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=rows,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=context,
        )
    )


class Tokenizer(SimpleNamespace):
    def __len__(self) -> int:
        return int(self.size)


def wrappers(model: Any) -> dict[str, Any]:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(causal_lm(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    return {
        "plain": model,
        "peft": adapted,
        "compiled": torch.compile(model),
        "data parallel": torch.nn.DataParallel(model),
        "reward model": TokenRewardModel.from_backbone(model),
        "peft around a reward model": peft.get_peft_model(
            TokenRewardModel.from_backbone(model), peft.LoraConfig(r=2, target_modules=["q_proj"])
        ),
    }


def test_rows_and_context_are_seen_through_wrappers() -> None:
    for name, model in wrappers(causal_lm()).items():
        assert vocabulary_rows(model) == 96, name
        assert isinstance(unwrapped(model), transformers.PreTrainedModel), name
        with pytest.raises(ValueError, match=r"^scorer has 96 vocabulary rows; it must have at least 97"):
            check_scorer("scorer", model, causal_lm(rows=97))
        with pytest.raises(ValueError, match=r"^scorer has a context of 64 tokens; it must be at least 128"):
            check_scorer("scorer", model, causal_lm(context=128))
        check_scorer("scorer", model, causal_lm())
    assert vocabulary_rows(torch.nn.Linear(2, 2)) is None


def test_vocabularies_padded_to_different_sizes_are_the_same_one() -> None:
    tokenizer = Tokenizer(size=90)
    check_scorer("value_model", causal_lm(rows=96), causal_lm(rows=128), tokenizer=tokenizer)
    check_scorer("value_model", causal_lm(rows=128), causal_lm(rows=96), tokenizer=tokenizer)
    with pytest.raises(
        ValueError, match=r"^value_model has 89 vocabulary rows; it must have at least 90, one for each"
    ):
        check_scorer("value_model", causal_lm(rows=89), causal_lm(rows=128), tokenizer=tokenizer)


def test_the_longest_sequence_counts_where_it_is_known() -> None:
    check_scorer("ref_model", causal_lm(context=64), causal_lm(context=4096), max_length=64)
    with pytest.raises(ValueError, match=r"context of 64 tokens; it must be at least 65, the longest sequence"):
        check_scorer("ref_model", causal_lm(context=64), causal_lm(context=4096), max_length=65)


@pytest.mark.parametrize("token", [-1, 96, 10**6])
def test_ids_without_a_row(token: int) -> None:
    check_token_ids("prompt_ids", [[0, 95], [], torch.tensor([3])], causal_lm())
    with pytest.raises(ValueError, match=rf"^prompt_ids has token id {token} in row 1; it must be from 0 to 95"):
        check_token_ids("prompt_ids", [[0], [1, token, 2]], causal_lm())


def test_tokenizer_with_more_tokens_than_rows() -> None:
    check_vocabulary(Tokenizer(size=96), causal_lm())
    with pytest.raises(ValueError, match=r"has 97 tokens; it must have at most the 96"):
        check_vocabulary(Tokenizer(size=97), causal_lm())
