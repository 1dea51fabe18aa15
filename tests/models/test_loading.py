"""One rule for the dtype of all models: float32 to train, the checkpoint's own to score, unless asked otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fgrl.models import TokenRewardModel, ValueModel, load_causal_lm  # noqa: E402

LOADERS = {
    "policy": load_causal_lm,
    "reward model": TokenRewardModel.from_pretrained,
    "value model": ValueModel.from_pretrained,
}
every_loader = pytest.mark.parametrize("load", list(LOADERS.values()), ids=list(LOADERS))


def causal_lm() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config).bfloat16()


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


@every_loader
def test_dtype_of_weights(load: Any, tmp_path: Path) -> None:
    causal_lm().save_pretrained(tmp_path)
    assert dtypes(load(tmp_path)) == {torch.float32}
    assert all(parameter.requires_grad for parameter in load(tmp_path).parameters())
    scoring = load(tmp_path, trainable=False)
    assert dtypes(scoring) == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in scoring.parameters())
    for dtype in ("auto", "bfloat16", torch.bfloat16):
        assert dtypes(load(tmp_path, dtype=dtype)) == {torch.bfloat16}
    for dtype in ("float32", torch.float32):
        assert dtypes(load(tmp_path, dtype=dtype, trainable=False)) == {torch.float32}


@every_loader
@pytest.mark.parametrize("dtype", ["bf16x", "nn", "int8", torch.int8, 16])
def test_what_is_no_floating_point_dtype_is_refused(load: Any, dtype: Any, tmp_path: Path) -> None:
    causal_lm().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^dtype is .*; it must be \"auto\" or a floating-point dtype"):
        load(tmp_path, dtype=dtype)


def test_a_new_head_on_a_backbone_in_memory_follows_the_rule() -> None:
    policy = causal_lm()
    assert dtypes(ValueModel.from_backbone(policy)) == {torch.float32}
    assert dtypes(ValueModel.from_backbone(policy, dtype="auto")) == {torch.bfloat16}
    assert dtypes(policy) == {torch.bfloat16}, "the copy is converted, not the policy"
    assert dtypes(ValueModel.from_backbone(policy, share=True)) == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"^dtype is float32; it must be None with share=True"):
        ValueModel.from_backbone(policy, share=True, dtype="float32")
