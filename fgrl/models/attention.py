"""Which attention implementation a model is loaded with."""

from __future__ import annotations

import torch


def resolve_attention(
    attn_implementation: str | None = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    *,
    model_class: type | None = None,
) -> str | None:
    """Turn `attn_implementation="auto"` into a name that transformers knows.

    Args:
        attn_implementation: "auto", or any name of transformers ("sdpa", "flash_attention_2", "eager", ...), which is
            returned as it is; None leaves the choice to transformers.
        dtype: dtype the weights are loaded in. FlashAttention takes bf16 and fp16 only.
        device: device the model will run on; by default the current accelerator, if there is one.
        model_class: class about to be instantiated. Where it lacks an implementation, the next one is taken.

    Returns:
        "flash_attention_2" where `flash-attn` is importable, the device is CUDA and `dtype` is bf16 or fp16; otherwise
        "sdpa"; None (transformers' own choice) for a model class without SDPA. Packed batches work with both names.

    Example:
        >>> resolve_attention("auto", torch.float32, "cpu")
        'sdpa'
    """
    if attn_implementation != "auto":
        return attn_implementation
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda and dtype in (torch.bfloat16, torch.float16) and getattr(model_class, "_supports_flash_attn", True):
        from transformers.utils import is_flash_attn_2_available

        if is_flash_attn_2_available():
            return "flash_attention_2"
    return "sdpa" if getattr(model_class, "_supports_sdpa", True) else None
