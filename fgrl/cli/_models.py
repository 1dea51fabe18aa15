"""Loading what `--model` and `--tokenizer` name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fgrl.cli._common import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fgrl.models import TokenRewardModel


def load_reward_model(
    name: str, tokenizer_name: str | None, *, flag: str = "--model", **options: Any
) -> tuple[TokenRewardModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer.

    Args:
        name: hub name, folder or `.gguf` file.
        tokenizer_name: the same for the tokenizer; None for that of the model.
        flag: what error messages call `name`.
        **options: for `TokenRewardModel.from_pretrained`.

    Raises:
        UsageError: one of the two cannot be loaded, or they do not fit together.
    """
    from fgrl.models import TokenRewardModel, load_tokenizer
    from fgrl.models.fit import check_vocabulary

    with usable("--tokenizer" if tokenizer_name else flag, tokenizer_name or name):
        tokenizer = load_tokenizer(tokenizer_name or name)
    with usable(flag, name):
        model = TokenRewardModel.from_pretrained(name, **options)
        check_vocabulary(tokenizer, model.model)
    return model, tokenizer


@contextmanager
def usable(flag: str, name: str) -> Iterator[None]:
    """Turn a failure to load `name` into a UsageError that names the flag."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag} {name} cannot be used: {' '.join(str(error).split())}") from error
