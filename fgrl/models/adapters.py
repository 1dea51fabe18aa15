"""What a Hugging Face model may be wrapped in: PEFT adapters, DDP, `torch.compile`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

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


def unwrapped(model: Any) -> Any:
    """The transformers model inside wrappers: DDP or FSDP, `torch.compile`, PEFT, `TokenScalarModel`.

    Adapter layers that PEFT has put into it stay. A module that holds no transformers model comes back as it is.
    """
    inner = model
    while inner is not None:
        if hasattr(inner, "get_base_model"):  # PEFT forwards attributes: it would pass for the model itself
            inner = inner.get_base_model()
        elif "_orig_mod" in getattr(inner, "_modules", {}):
            inner = inner._orig_mod
        elif hasattr(inner, "base_model_prefix"):
            return inner
        else:
            children = getattr(inner, "_modules", {})
            inner = children.get("module") or children.get("model")
    return model
