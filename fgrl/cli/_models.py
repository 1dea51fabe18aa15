"""Loading what `--model` and `--tokenizer` name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fgrl.cli._errors import UsageError, usable

if TYPE_CHECKING:
    import torch
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


def usable_device(flag: str, name: str | None) -> torch.device:
    """The device that `flag` names, or the default; `UsageError` where torch cannot compute on it."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        why = str(error).partition("\n")[0]
        raise UsageError(f"{flag} is {name!r}; it must be a device that torch can compute on ({why})") from error
    return device
