"""Loading token-classification models (one label) and tokenizers from checkpoints, GGUF files or other models."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from fgrl.models.attention import resolve_attention
from fgrl.models.kinds import check_architectures, check_loaded_keys

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

HEAD_NAMES = ("score", "classifier")
_HUB_OPTIONS = (
    "cache_dir",
    "code_revision",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


def load_token_classifier(
    name_or_path: str | os.PathLike[str],
    *,
    trainable: bool = True,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = "auto",
    **kwargs: Any,
) -> tuple[PreTrainedModel, bool]:
    """Load `AutoModelForTokenClassification` with one label from a token-classification or causal-LM checkpoint.

    Args:
        name_or_path: folder, hub name, or path of one `.gguf` file.
        trainable: see `resolve_dtype`; False also freezes the weights.
        dtype: see `resolve_dtype`.
        attn_implementation: see `fgrl.models.resolve_attention`.
        **kwargs: passed to `from_pretrained` (`gguf_file`, `revision`, ...). Weights are read from safetensors or GGUF
            only, unless `use_safetensors` says otherwise.

    Returns:
        The model, and whether the checkpoint had a head. A head that it had not starts at 0.

    Raises:
        ValueError: the backbone has no token-classification class, or the checkpoint has another number of labels or a
            head for another task, such as sequence classification.
    """
    name_or_path, gguf_file = split_gguf(name_or_path, kwargs.pop("gguf_file", None))
    if gguf_file is not None:
        kwargs = {**gguf_options(gguf_file), **kwargs}
    else:
        kwargs.setdefault("use_safetensors", True)
    config = kwargs.pop("config", None)
    if config is None:
        config = load_config(name_or_path, gguf_file, kwargs)
    remote_code = kwargs.get("trust_remote_code") and "AutoModelForTokenClassification" in getattr(
        config, "auto_map", {}
    )
    model_class = None if remote_code else token_class(config)
    check_architectures(name_or_path, config)
    config.num_labels = 1
    dtype = resolve_dtype(dtype, trainable=trainable)
    attn_implementation = resolve_attention(attn_implementation, loaded_dtype(dtype, config), model_class=model_class)
    model, info = AutoModelForTokenClassification.from_pretrained(
        name_or_path,
        config=config,
        dtype=dtype,
        attn_implementation=attn_implementation,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # looked at below
        **kwargs,
    )
    check_loaded_keys(name_or_path, info, HEAD_NAMES)
    if gguf_file is not None:
        mark_dense(model)
    missing = [key for key in info["missing_keys"] if key.split(".")[0] in HEAD_NAMES]
    with torch.no_grad():
        for key in missing:
            model.get_parameter(key).zero_()
    if not trainable:
        model.requires_grad_(False)
    return model, not any(key.endswith(".weight") for key in missing)


def load_config(name_or_path: str, gguf_file: str | None, options: dict[str, Any]) -> PretrainedConfig:
    """The configuration of a checkpoint, found with those of the `options` that say where to look."""
    hub_options = {key: options[key] for key in _HUB_OPTIONS if key in options}
    if gguf_file is not None:
        hub_options["gguf_file"] = gguf_file
    config: PretrainedConfig = AutoConfig.from_pretrained(name_or_path, **hub_options)
    return config


def resolve_dtype(dtype: torch.dtype | str | None, *, trainable: bool) -> torch.dtype | str:
    """The one rule for the dtype of the weights of every model: policy, reference, reward and value model.

    Args:
        dtype: a torch dtype or its name; "auto", that of the checkpoint; None for the rule.
        trainable: whether the model will be trained. None is then float32, since half precision is too coarse for the
            updates of fine-tuning (`bf16=True` of the trainer computes in bf16 with float32 weights); otherwise None
            is "auto".

    Raises:
        ValueError: `dtype` names no floating-point dtype.

    Example:
        >>> resolve_dtype(None, trainable=True), resolve_dtype(None, trainable=False)
        (torch.float32, 'auto')
    """
    if dtype is None:
        return torch.float32 if trainable else "auto"
    if dtype == "auto":
        return "auto"
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ValueError(f'dtype is {dtype!r}; it must be "auto" or a floating-point dtype, such as "bfloat16"')
    return named


def loaded_dtype(dtype: torch.dtype | str, config: PretrainedConfig) -> torch.dtype | None:
    """The dtype that `dtype` will mean for a checkpoint, where its configuration tells."""
    return dtype if isinstance(dtype, torch.dtype) else getattr(config, "dtype", None)


def build_token_classifier(backbone: PreTrainedModel, *, share: bool) -> PreTrainedModel:
    """The token-classification model of one label around the backbone of a model in memory; the head starts at 0.

    Args:
        backbone: a causal LM or a base model of transformers.
        share: keep the very modules of `backbone` (both then train the same weights) instead of a copy.
    """
    if hasattr(backbone, "peft_config"):
        raise ValueError(
            "backbone carries PEFT adapters; it must be a plain model: call merge_and_unload() on it first"
        )
    base = backbone.base_model if share else copy.deepcopy(backbone.base_model)
    config = copy.deepcopy(base.config)
    model_class = token_class(config)
    config.num_labels = 1
    config.classifier_dropout = 0.0
    with torch.device("meta"):
        model = model_class(config)
    expected = type(model.base_model)
    if not isinstance(base, expected):
        raise ValueError(
            f"backbone holds a {type(base).__name__}; {model_class.__name__} must have a {expected.__name__}"
        )
    setattr(model, model.base_model_prefix, base)
    embedding = base.get_input_embeddings().weight
    head_name = find_head(model)
    head = getattr(model, head_name).to_empty(device=embedding.device).to(embedding.dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    model.train(backbone.training)
    return model


def token_class(config: PretrainedConfig) -> Any:
    """The token-classification class of transformers for `config`."""
    if type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"model_type is {config.model_type!r}; it must be one for which transformers {transformers.__version__} "
            "has a token-classification class, such as llama, qwen2, qwen3, gemma2, mistral or gpt2"
        )
    return MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[type(config)]


def find_head(model: nn.Module) -> str:
    """Name of the attribute that holds the linear head of a token-classification model."""
    name = next((name for name in HEAD_NAMES if isinstance(getattr(model, name, None), nn.Module)), HEAD_NAMES[0])
    check_scalar_head(model, getattr(model, name, None))
    return name


def check_scalar_head(model: nn.Module, head: Any) -> None:
    """Raise `ValueError` unless `head`, that of `model`, is a linear layer with one label."""
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ValueError(
            f"model is a {type(model).__name__}; it must be a token-classification model with one label "
            "(TokenRewardModel.from_backbone makes one from a causal LM)"
        )


def scalar_head(model: nn.Module) -> nn.Module:
    """The head of a token-classification model, or what PEFT has put in its place."""
    return next(getattr(model, name) for name in HEAD_NAMES if isinstance(getattr(model, name, None), nn.Module))


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set the probability of every dropout in `model`: the layers, and the floats that attention reads."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, probability)


def load_tokenizer(
    name_or_path: str | os.PathLike[str], *, gguf_file: str | None = None, **kwargs: Any
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, a hub name or one `.gguf` file, with a padding token.

    A tokenizer without a padding token pads with its end-of-sequence token: padding is masked everywhere in fgrl.
    """
    name_or_path, gguf_file = split_gguf(name_or_path, gguf_file)
    if gguf_file is not None:
        kwargs["gguf_file"] = gguf_file
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def gguf_options(gguf_file: str) -> dict[str, Any]:
    """Options of `from_pretrained` that unpack a GGUF file into ordinary weights, which can be trained."""
    try:
        from transformers import GgufConfig
    except ImportError:  # a transformers that always unpacks
        return {"gguf_file": gguf_file}
    return {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}


def mark_dense(model: PreTrainedModel) -> None:
    """Take the mark "quantized" off a model with unpacked GGUF weights: transformers trains no model that has it."""
    if not getattr(getattr(model.config, "quantization_config", None), "dequantize", False):
        return
    del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    for name in ("quantization_method", "_is_quantized_training_enabled"):
        if name in vars(model):
            delattr(model, name)


def split_gguf(name_or_path: str | os.PathLike[str], gguf_file: str | None = None) -> tuple[str, str | None]:
    """Split the path of a `.gguf` file into the folder and the file, the way transformers wants them."""
    path = os.fspath(name_or_path)
    if gguf_file is None and path.endswith(".gguf"):
        return os.path.dirname(path) or ".", os.path.basename(path)
    return path, gguf_file
