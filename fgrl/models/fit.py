"""Whether models, tokenizer and token ids fit together: checked when a trainer is built, not deep inside torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from fgrl.models.adapters import unwrapped

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def context_length(config: PretrainedConfig) -> int | None:
    """Longest sequence the backbone was made for, where its configuration says so."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def vocabulary_rows(model: nn.Module) -> int | None:
    """Number of vocabulary rows of the input embedding.

    Args:
        model: a Hugging Face model or a `TokenScalarModel`, wrapped (DDP, PEFT) or not.

    Returns:
        None where nobody can say: a model without an embedding table, or one whose weights are sharded away.
    """
    try:
        embedding = unwrapped(model).get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    rows = getattr(embedding, "num_embeddings", None)  # of quantised tables too, whose weight has another shape
    if rows is None and getattr(embedding, "weight", None) is not None:
        rows = embedding.weight.shape[0]
    return rows or None


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> None:
    """Raise `ValueError` when the tokenizer has ids that the model's embedding does not."""
    rows = vocabulary_rows(model)
    if rows is not None and rows < len(tokenizer):
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens; it must have at most the {rows} of the model")


def check_scorer(
    name: str,
    scorer: nn.Module,
    policy: nn.Module,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
) -> None:
    """Check that a model which scores the policy's sequences has the vocabulary and the context for them.

    Vocabularies padded to different sizes are the same vocabulary: with a `tokenizer`, its tokens are what the scorer
    must have, not the rows of the policy that no token uses.

    Args:
        name: what error messages call the scorer, such as "reward_model".
        scorer: a reward, value or reference model.
        policy: the causal LM that writes the sequences.
        tokenizer: the policy's tokenizer.
        max_length: tokens of the longest sequence, prompt and completion; by default the policy's context.

    Raises:
        ValueError: the scorer lacks vocabulary rows, or its context is too short.
    """
    rows, needed = vocabulary_rows(scorer), vocabulary_rows(policy)
    whose = "one for each of the policy's"
    if tokenizer is not None and needed is not None:
        needed, whose = min(needed, len(tokenizer)), "one for each token of the policy's tokenizer"
    if rows is not None and needed is not None and rows < needed:
        raise ValueError(f"{name} has {rows} vocabulary rows; it must have at least {needed}, {whose}")
    context = context_length(unwrapped(scorer).config)
    longest, source = max_length, "the longest sequence of prompt and completion"
    if longest is None:
        longest, source = context_length(unwrapped(policy).config), "the policy's context"
    if context is not None and longest is not None and context < longest:
        raise ValueError(f"{name} has a context of {context} tokens; it must be at least {longest}, {source}")


def check_token_ids(name: str, token_ids: Iterable[Sequence[int]], model: nn.Module) -> None:
    """Raise `ValueError` when a sequence holds an id without a vocabulary row in `model`.

    Args:
        name: what the error message calls the sequences, such as "prompt_ids".
        token_ids: the sequences.
        model: as for `vocabulary_rows`.
    """
    rows = vocabulary_rows(model)
    for index, ids in enumerate(token_ids):
        for token in (min(ids), max(ids)) if len(ids) else ():
            if token < 0 or (rows is not None and token >= rows):
                wanted = "0 or more" if rows is None else f"from 0 to {rows - 1}, a vocabulary row of the model"
                raise ValueError(f"{name} has token id {int(token)} in row {index}; it must be {wanted}")
