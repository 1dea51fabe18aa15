"""PEFT adapters on models that give one scalar a token."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from fgrl.models.loading import HEAD_NAMES

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


def with_adapters(model: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    """Put adapters on a token-classification model; its head is trained and saved whole, without adapters.

    Args:
        model: the Hugging Face model inside a `TokenScalarModel`.
        peft_config: as for a causal LM; its task type is set here.
    """
    from peft import TaskType, get_peft_model

    peft_config = copy.copy(peft_config)
    peft_config.task_type = TaskType.TOKEN_CLS
    if hasattr(peft_config, "exclude_modules"):
        excluded = peft_config.exclude_modules or []
        if not isinstance(excluded, str):
            peft_config.exclude_modules = [*excluded, *HEAD_NAMES]
    return get_peft_model(model, peft_config)
