"""What a checkpoint or a model was made for: a head trained for another task is never lost without a word."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# Language models: their head gives way to one scalar a token. Heads of every other task mean something.
_LANGUAGE_MODELS = {"CausalLM", "ConditionalGeneration", "MaskedLM", "PreTraining", "Generation", "LMHead"}
_OTHER_HEADS = re.compile(r"score|classif|qa_|value|v_head|reward|rm_head|critic|regress|summary|multiple_choice")
_WANTED = "it must be a language model, a base model, or a token-classification model with one label"
_NEW_HEAD = "TokenRewardModel.from_backbone puts a new head on its backbone"


def task_of(class_name: str) -> str | None:
    """What a class of transformers is for, from its name; None for a base model.

    Example:
        >>> task_of("LlamaForSequenceClassification"), task_of("GPT2LMHeadModel"), task_of("LlamaModel")
        ('SequenceClassification', 'LMHead', None)
    """
    found = re.search(r"For([A-Z]\w*?)(?:Model)?$|(LMHead)", class_name)
    return (found.group(1) or found.group(2)) if found else None


def check_architectures(name: str, config: Any) -> None:
    """Refuse a checkpoint by what its configuration says it is.

    Raises:
        ValueError: it was made for a task that is neither language modelling nor token classification with one label.
    """
    for architecture in config.architectures or []:
        task = task_of(architecture)
        if task == "TokenClassification" and config.num_labels != 1:
            raise ValueError(
                f"{name} is a token-classification checkpoint with {config.num_labels} labels; it must have 1"
            )
        if task is not None and task != "TokenClassification" and task not in _LANGUAGE_MODELS:
            raise ValueError(f"{name} is a checkpoint of {architecture}; {_WANTED} ({_NEW_HEAD})")


def check_loaded_keys(name: str, info: dict[str, Any], head_names: Iterable[str]) -> None:
    """Refuse a checkpoint by its weights, whatever its configuration says.

    Args:
        name: of the checkpoint.
        info: `output_loading_info` of transformers.
        head_names: what token-classification heads are called.

    Raises:
        ValueError: it has a head of another kind, or weights of other sizes than its configuration says.
    """
    for key in sorted(str(key if isinstance(key, str) else key[0]) for key in info["mismatched_keys"]):
        raise ValueError(
            f"{name} has {key} of another shape than a token-classification model with one label; {_WANTED}"
        )
    for key in sorted(info["unexpected_keys"]):
        first = key.split(".")[0]
        if first in head_names or _OTHER_HEADS.search(first):
            raise ValueError(f"{name} has a head of another kind, with {key}; {_WANTED} ({_NEW_HEAD})")
    missing = set(info["missing_keys"])
    for head in head_names:
        if f"{head}.bias" in missing and f"{head}.weight" not in missing:
            raise ValueError(
                f"{name} has a head without {head}.bias, as sequence classification has; {_WANTED} ({_NEW_HEAD})"
            )


def check_token_classifier(model: Any) -> None:
    """Refuse a model in memory, out of its wrappers, that gives no label for each token.

    Raises:
        ValueError: its class is for another task than token classification.
    """
    tasks = {task_of(parent.__name__) for parent in type(model).__mro__} - {None}
    if tasks and "TokenClassification" not in tasks:
        raise ValueError(
            f"model is a {type(model).__name__}; it must be a token-classification model with one label "
            "(TokenRewardModel.from_backbone makes one from a language model, or puts a new head on its backbone)"
        )
