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


KINDS = {
    "sequence classification": ("LlamaForSequenceClassification", {"num_labels": 1}),
    "sequence classification, three labels": ("LlamaForSequenceClassification", {"num_labels": 3}),
    "sequence classification with a dense layer": ("RobertaForSequenceClassification", {"num_labels": 1}),
    "question answering": ("LlamaForQuestionAnswering", {}),
    "question answering, Qwen 2": ("Qwen2ForQuestionAnswering", {}),
    "multiple choice": ("RobertaForMultipleChoice", {}),
    "three labels a token": ("LlamaForTokenClassification", {"num_labels": 3}),
}


def of_kind(class_name: str, options: dict[str, Any]) -> Any:
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        pad_token_id=1,
        **options,
    )
    return model_class(config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architectures", ["named", "not named"])
def test_checkpoint_with_a_head_for_another_task_is_refused(kind: str, architectures: str, tmp_path: Path) -> None:
    if (kind, architectures) == ("multiple choice", "not named"):
        pytest.skip("its head is in name and shape that of a token classifier with one label")
    model = of_kind(*KINDS[kind])
    model.save_pretrained(tmp_path)
    if architectures == "not named":  # the weights tell too
        config = transformers.AutoConfig.from_pretrained(tmp_path)
        config.architectures = None
        config.save_pretrained(tmp_path)
    for load in (TokenRewardModel.from_pretrained, ValueModel.from_pretrained):
        with pytest.raises(ValueError, match=r"; it must (be a language model|have 1)") as error:
            load(tmp_path)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapters", [False, True])
def test_model_in_memory_for_another_task_is_refused(kind: str, adapters: bool) -> None:
    model = of_kind(*KINDS[kind])
    if adapters:
        peft = pytest.importorskip("peft")
        task = "TOKEN_CLS" if "Token" in type(model).__name__ else "SEQ_CLS"
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "query"], task_type=task)
        if "QuestionAnswering" in type(model).__name__:
            config.task_type = "QUESTION_ANS"
        model = peft.get_peft_model(model, config)
    with pytest.raises(ValueError, match="it must be a token-classification model with one label"):
        TokenRewardModel(model)


def test_value_head_of_trl_is_refused(tmp_path: Path) -> None:
    """A causal LM with a head beside it, as TRL writes it."""
    safetensors = pytest.importorskip("safetensors.torch")
    causal_lm().save_pretrained(tmp_path)
    weights = safetensors.load_file(tmp_path / "model.safetensors")
    weights["v_head.summary.weight"] = torch.zeros(1, 16)
    safetensors.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has a head of another kind, with v_head\.summary\.weight; it must be"):
        TokenRewardModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("class_name", ["RobertaForMaskedLM", "RobertaForCausalLM", "RobertaModel", "LlamaModel"])
def test_language_and_base_models_get_a_new_head(class_name: str, tmp_path: Path) -> None:
    of_kind(class_name, {}).save_pretrained(tmp_path)
    assert not TokenRewardModel.from_pretrained(tmp_path).head_loaded


def test_backbone_of_a_sequence_classifier_takes_a_new_head_when_asked() -> None:
    model = of_kind("LlamaForSequenceClassification", {"num_labels": 1})
    assert not TokenRewardModel.from_backbone(model).head_loaded
