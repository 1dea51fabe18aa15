"""Loading causal language models: policies and references."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from fgrl.models.attention import resolve_attention
from fgrl.models.loading import gguf_options, mark_dense, split_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_causal_lm(
    name_or_path: str | os.PathLike[str], *, attn_implementation: str | None = "auto", **kwargs: Any
) -> PreTrainedModel:
    """Load a causal LM from a folder, a hub name, or one `.gguf` file.

    Args:
        name_or_path: where it is.
        attn_implementation: "auto" or a name of transformers; see `fgrl.models.resolve_attention`.
        **kwargs: passed to transformers: `dtype`, `revision`, `device_map`, ... Weights are read from safetensors or
            GGUF only, unless `use_safetensors` says otherwise, and are float32 unless `dtype` says otherwise: in
            half precision they are too coarse for the updates of PPO.
    """
    name_or_path, gguf_file = split_gguf(name_or_path, kwargs.pop("gguf_file", None))
    if gguf_file is not None:
        kwargs = {**gguf_options(gguf_file), **kwargs}
    else:
        kwargs.setdefault("use_safetensors", True)
    dtype = kwargs.setdefault("dtype", torch.float32)
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype)
    kwargs["attn_implementation"] = resolve_attention(
        attn_implementation, dtype if isinstance(dtype, torch.dtype) else None
    )
    model = AutoModelForCausalLM.from_pretrained(name_or_path, **kwargs)
    mark_dense(model)
    return model
