"""A Hugging Face backbone that gives one fp32 scalar a token: what the reward and the value model share."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from fgrl.models.adapters import unwrapped
from fgrl.models.batches import learn_batches, model_inputs
from fgrl.models.kinds import check_token_classifier
from fgrl.models.loading import (
    HEAD_NAMES,
    build_token_classifier,
    check_scalar_head,
    find_head,
    load_token_classifier,
    resolve_dtype,
    scalar_head,
    set_dropout,
)
from fgrl.ops import token_reward_head

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ModelT = TypeVar("ModelT", bound="TokenScalarModel")


class TokenHead(nn.Linear):
    """The linear head with one output of a token-classification model, read through `fgrl.ops.token_reward_head`.

    Takes the place of the head in the Hugging Face model and keeps its parameters and their names, so that checkpoints,
    PEFT, FSDP and DeepSpeed see an ordinary linear layer.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> TokenHead:
        """A head that holds the parameters of `linear` itself, not copies."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight = linear.weight
        head.bias = linear.bias
        return head

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden `[..., D]`, any float dtype -> `[..., 1]` fp32."""
        return token_reward_head(hidden, self.weight, self.bias)


class TokenScalarModel(nn.Module):
    """One fp32 scalar a token from any backbone for which transformers has a token-classification class.

    `self.model` is that Hugging Face model (`num_labels=1`) with its head replaced by a `TokenHead`. A `PeftModel`
    around it works too, and `peft.get_peft_model(this, LoraConfig(...))` does.

    Args:
        model: a token-classification model with one label, or a `PeftModel` of one.
    """

    main_input_name = "input_ids"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        install_head(model)
        self.model = model
        self.head_loaded = True

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        name_or_path: str | os.PathLike[str],
        *,
        trainable: bool = True,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = "auto",
        dropout: float | None = 0.0,
        **kwargs: Any,
    ) -> ModelT:
        """Load from a token-classification or a causal-LM checkpoint; a head that is not in it starts at 0.

        Args:
            name_or_path: folder, hub name, or path of one `.gguf` file.
            trainable: False for a model that only scores: its weights are frozen.
            dtype: a torch dtype or its name, or "auto", that of the checkpoint. By default float32 for a model to
                train, since half precision is too coarse for its updates, and "auto" for one that only scores.
            attn_implementation: "auto" or a name of transformers; see `fgrl.models.resolve_attention`.
            dropout: probability of every dropout in the model, backbone and head. 0 makes the scalars in training those
                of evaluation; None keeps what the checkpoint's config says.
            **kwargs: passed to transformers: `gguf_file`, `revision`, `device_map`, ...

        Returns:
            The model in evaluation mode. `head_loaded` says whether the checkpoint had a head.

        Raises:
            ValueError: the backbone has no token-classification class, or the checkpoint has not one label, or a head
                for another task, such as sequence classification.
        """
        inner, head_loaded = load_token_classifier(
            name_or_path, trainable=trainable, dtype=dtype, attn_implementation=attn_implementation, **kwargs
        )
        if dropout is not None:
            set_dropout(inner, dropout)
        model = cls(inner)
        model.head_loaded = head_loaded
        return model

    @classmethod
    def from_backbone(
        cls: type[ModelT],
        backbone: PreTrainedModel | TokenScalarModel,
        *,
        share: bool = False,
        dtype: torch.dtype | str | None = None,
    ) -> ModelT:
        """Put a new head, all 0, on the backbone of a model in memory.

        Args:
            backbone: a causal LM, a base model, or another `TokenScalarModel`, without PEFT adapters.
            share: False copies the backbone and turns its dropout off. True keeps the very modules: both models then
                train the same weights, and only the new head has no dropout.
            dtype: of the copy: a torch dtype or its name, or "auto", that of the backbone. By default float32, as for
                every model to train; a quantised backbone, or one that is shared, stays as it is.

        Raises:
            ValueError: `dtype` is given for shared modules; the backbone has no token-classification class, or carries
                adapters.
        """
        if isinstance(backbone, TokenScalarModel):
            backbone = backbone.model
        if share and dtype is not None:
            raise ValueError(f"dtype is {dtype}; it must be None with share=True, since the modules are the backbone's")
        if share or getattr(backbone, "is_quantized", False):
            dtype = dtype or "auto"
        inner = build_token_classifier(backbone, share=share)
        resolved = resolve_dtype(dtype, trainable=True)
        if isinstance(resolved, torch.dtype):
            inner.to(resolved)
        if not share:
            set_dropout(inner, 0.0)
        model = cls(inner)
        model.head_loaded = False
        return model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """One scalar a token.

        Args:
            input_ids: `[B, T]` int64; or packed `[1, N]`, sequences one after the other.
            attention_mask: `[B, T]`, 1 at real tokens; padding may be on either side. None where packed.
            position_ids: `[B, T]`, counted from 0 for every family (RoBERTa's own start at `padding_idx + 1`). Packed
                sequences restart at 0, which is what keeps them from attending to each other. By default each sequence
                is numbered as it would be alone, without padding.
            **kwargs: passed to the backbone.

        Returns:
            `[B, T]` fp32, 0 where `attention_mask` is 0.

        Raises:
            ValueError: padding or packing that changes what the backbone computes for a sequence. A few tokens tell,
                the first time that a model object is seen.
        """
        return token_scalars(self.model, input_ids, attention_mask, position_ids, **kwargs)

    @property
    def config(self) -> PretrainedConfig:
        """Configuration of the Hugging Face model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return bool(_first_of(self.model, ("is_activation_checkpointing", "is_gradient_checkpointing")))

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute activations in the backward pass."""
        enable = _first_of(self.model, ("activation_checkpointing_enable", "gradient_checkpointing_enable"))
        enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass."""
        _first_of(self.model, ("activation_checkpointing_disable", "gradient_checkpointing_disable"))()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write a plain Hugging Face checkpoint: config and safetensors.

        `AutoModelForTokenClassification.from_pretrained(save_directory)` loads it without fgrl. LoRA adapters are
        merged into a copy of the weights first; `self.model.save_pretrained` writes the adapters alone.
        """
        model = self.model
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(save_directory, **kwargs)


def install_head(model: PreTrainedModel) -> None:
    """Replace the head of a token-classification model (or of the one in a `PeftModel`) by a `TokenHead`, in place."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    check_token_classifier(model)
    for name in HEAD_NAMES:
        wrapper: Any = getattr(model, name, None)
        if hasattr(wrapper, "modules_to_save"):  # PEFT trains a copy of the head beside the original
            check_scalar_head(model, wrapper.original_module)
            wrapper.original_module = _as_token_head(wrapper.original_module)
            for adapter, head in wrapper.modules_to_save.items():
                wrapper.modules_to_save[adapter] = _as_token_head(head)
            return
    name = find_head(model)
    setattr(model, name, _as_token_head(getattr(model, name)))


def _as_token_head(head: nn.Linear) -> TokenHead:
    return head if isinstance(head, TokenHead) else TokenHead.of(head)


def token_scalars(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """`TokenScalarModel.forward` for a bare Hugging Face model with a `TokenHead`, wrapped (DDP, FSDP, PEFT) or not.

    Raises:
        ValueError: the model does not bear the padding or the packing of this batch.
    """
    inner = unwrapped(model)
    batches = learn_batches(inner, scalar_head(inner))
    inputs = model_inputs(inner, batches, input_ids, attention_mask, position_ids)
    logits: Tensor = model(**inputs, **kwargs).logits
    if logits.shape != (*input_ids.shape, 1):
        got, wanted = list(logits.shape), [*input_ids.shape, 1]
        raise ValueError(
            f"model is a {type(inner).__name__} that gives logits {got}; it must give {wanted}, one a token"
        )
    scalars = logits.squeeze(-1)  # [B, T]
    return scalars if attention_mask is None else scalars.masked_fill(attention_mask == 0, 0.0)


def _first_of(model: nn.Module, names: tuple[str, ...]) -> Any:
    """The first attribute there is: transformers 5 renamed gradient to activation checkpointing on the way."""
    return next(getattr(model, name) for name in names if hasattr(model, name))
