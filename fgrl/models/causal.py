"""Loading causal language models: policies and references."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from fgrl.models.attention import resolve_attention
from fgrl.models.loading import gguf_options, load_config, loaded_dtype, mark_dense, resolve_dtype, split_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_causal_lm(
    name_or_path: str | os.PathLike[str],
    *,
    trainable: bool = True,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = "auto",
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a causal LM from a folder, a hub name, or one `.gguf` file.

    Args:
        name_or_path: where it is.
        trainable: True for a policy. False for a model that only scores, such as a reference: its weights are frozen.
        dtype: a torch dtype or its name, or "auto", that of the checkpoint. By default float32 for a model to train,
            since half precision is too coarse for the updates of PPO, and "auto" for one that only scores.
        attn_implementation: "auto" or a name of transformers; see `fgrl.models.resolve_attention`.
        **kwargs: passed to transformers: `revision`, `device_map`, ... Weights are read from safetensors or GGUF only,
            unless `use_safetensors` says otherwise.

    Raises:
        ValueError: `dtype` names no floating-point dtype.
    """
    name_or_path, gguf_file = split_gguf(name_or_path, kwargs.pop("gguf_file", None))
    if gguf_file is not None:
        kwargs = {**gguf_options(gguf_file), **kwargs}
    else:
        kwargs.setdefault("use_safetensors", True)
    dtype = resolve_dtype(dtype, trainable=trainable)
    if attn_implementation == "auto":
        config = kwargs.get("config") or load_config(name_or_path, gguf_file, kwargs)
        attn_implementation = resolve_attention(attn_implementation, loaded_dtype(dtype, config))
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        name_or_path, dtype=dtype, attn_implementation=attn_implementation, **kwargs
    )
    mark_dense(model)
    if not trainable:
        model.requires_grad_(False)
    return model
