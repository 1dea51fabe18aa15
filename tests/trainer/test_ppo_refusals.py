"""What the PPO trainer refuses: contexts, vocabularies, options, numbers and models that cannot work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fgrl import FineGrainedPPOConfig, TokenRewardConfig, TokenRewardModel, ValueModel  # noqa: E402


def test_prompts_are_cut_to_what_the_context_leaves(make_trainer: Any) -> None:
    rows = [{"prompt": "the cat sat on a mat " * 60}]
    trainer = make_trainer({"max_completion_length": 200}, train_dataset=rows)  # a context of 256
    assert len(trainer.train_dataset[0]["prompt_ids"]) == 56
    with pytest.raises(ValueError, match="max_completion_length is 256"):
        make_trainer({"max_completion_length": 256})


@pytest.mark.parametrize("which", ["ref_model", "reward_model", "value_model"])
def test_a_scorer_with_a_short_context_is_refused_where_a_sequence_is_longer(
    make_trainer: Any, tiny_tokenizer: Any, which: str
) -> None:
    """Learned positions end in an IndexError; 16 tokens are enough for the six prompts and six tokens more."""
    config = transformers.GPT2Config(vocab_size=400, n_embd=16, n_layer=1, n_head=1, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    wrap = {"reward_model": TokenRewardModel.from_backbone, "value_model": ValueModel.from_backbone}
    model = wrap.get(which, lambda own: own)(model)
    trainer = make_trainer({"max_steps": 1}, **{which: model})
    trainer.train()
    long = [{"prompt": "who is it on the mat and under the tree and "}]
    sentence = f"{which} has a context of 16 tokens; it must be at least "
    with pytest.raises(ValueError, match=sentence):
        make_trainer(**{which: model}, train_dataset=long)
    with pytest.raises(ValueError, match=sentence):
        make_trainer(**{which: model}, eval_dataset=long)
    with pytest.raises(ValueError, match=sentence):
        trainer.evaluate(long)
    with pytest.raises(ValueError, match=sentence):
        make_trainer({"max_completion_length": 14}, **{which: model})


@pytest.mark.parametrize("which", ["ref_model", "reward_model", "value_model"])
def test_padded_vocabularies_are_the_same_and_their_padding_is_not_sampled(
    make_trainer: Any, rollout_of: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, which: str
) -> None:
    tokens = len(tiny_tokenizer)
    policy = copy.deepcopy(tiny_causal_lm)
    policy.resize_token_embeddings(tokens + 256, mean_resizing=False)
    with torch.no_grad():
        policy.lm_head.weight[tokens:] = policy.lm_head.weight[:256]
    wrap = {"reward_model": TokenRewardModel.from_backbone, "value_model": ValueModel.from_backbone}
    scorer = wrap.get(which, lambda own: own)(small(tiny_causal_lm, tokens + 8))
    trainer = make_trainer({"generation_kwargs": {"suppress_tokens": [5]}}, model=policy, **{which: scorer})
    for _ in range(4):
        rollout, _ = rollout_of(trainer)
        assert int(rollout.input_ids.max()) < tokens + 8
    with pytest.raises(ValueError, match=rf"prompt_ids has {tokens + 8}; it must be in \[0, {tokens + 8}\)"):
        make_trainer(model=policy, train_dataset=[{"prompt_ids": [tokens + 8]}], **{which: scorer})


def small(model: Any, rows: int) -> Any:
    model = copy.deepcopy(model)
    model.resize_token_embeddings(rows)
    return model


@pytest.mark.parametrize("which", ["model", "ref_model", "reward_model", "value_model"])
def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(
    make_trainer: Any, tiny_causal_lm: Any, which: str
) -> None:
    model = small(tiny_causal_lm, 100)
    wrap = {"reward_model": TokenRewardModel.from_backbone, "value_model": ValueModel.from_backbone}
    sentence = "the 100 of the model" if which == "model" else f"{which} has 100 vocabulary rows; it must have at least"
    with pytest.raises(ValueError, match=sentence):
        make_trainer(**{which: wrap.get(which, lambda own: own)(model)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha is 5.0; it must be None: "),
        ({"use_liger_kernel": True}, "use_liger_kernel is True; it must be False: "),
        ({"bf16_full_eval": True}, "bf16_full_eval is True"),
        ({"torch_compile": True}, "torch_compile is True; it must be False: "),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy is 'group_by_length'"),
        ({"dataloader_in_order": False}, "dataloader_in_order is False"),
        ({"accelerator_config": {"dispatch_batches": True}}, "accelerator_config.dispatch_batches is True"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config.split_batches is True"),
        (
            {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}},
            "num_steps=4; it must be left out: set gradient_accumulation_steps",
        ),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"generation_kwargs": {"temperature": 0.5}}, "generation_kwargs has 'temperature'"),
        ({"generation_kwargs": {"stop_strings": ["x"]}}, "generation_kwargs has 'stop_strings'"),
        ({"reward_clip": -1.0}, "reward_clip"),
        ({"top_p": 2.0}, "top_p"),
        ({"top_k": -5}, "top_k"),
        ({"vf_coef": -1.0}, "vf_coef"),
        ({"value_clip": 0.0}, "value_clip"),
        ({"temperature": 0.0}, "temperature"),
        ({"lam": 1.5}, "lam"),
        ({"reward_kl_estimator": "k4"}, "reward_kl_estimator"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_cannot_work_are_refused_at_once(make_trainer: Any, config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(config)


_NAN = float("nan")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("learning_rate", _NAN, "nan; it must be a number"),
        ("max_grad_norm", _NAN, "nan; it must be a number"),
        ("weight_decay", float("inf"), "inf; it must be a finite number of at least 0"),
        ("adam_epsilon", -1.0, "-1.0; it must be a finite number of at least 0"),
        ("adam_beta1", 1.0, "1.0; it must be at least 0 and below 1"),
        ("adam_beta2", -0.1, "-0.1; it must be at least 0 and below 1"),
        ("reward_kl_coef", _NAN, "nan; it must be a number"),
        ("value_learning_rate", _NAN, "nan; it must be a number"),
        ("unchanged_weight", _NAN, "nan; it must be a number"),
    ],
)
def test_numbers_that_no_run_can_use_are_refused(tmp_path: Path, option: str, value: float, message: str) -> None:
    configs = [config for config in (FineGrainedPPOConfig, TokenRewardConfig) if option in config.__dataclass_fields__]
    assert configs
    for config in configs:
        with pytest.raises(ValueError, match=f"^{option} is {message}"):
            config(str(tmp_path), **{option: value})


def test_models_of_the_wrong_kind_are_refused(make_trainer: Any, tiny_causal_lm: Any, prompts: Any) -> None:
    peft = pytest.importorskip("peft")
    config = copy.deepcopy(tiny_causal_lm.config)
    config.num_labels = 2
    sequence = transformers.LlamaForSequenceClassification(config)
    two_labels = transformers.LlamaForTokenClassification(config)
    adapted = peft.get_peft_model(copy.deepcopy(tiny_causal_lm), peft.LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="LlamaForSequenceClassification; it must give a reward a token"):
        make_trainer(reward_model=sequence)
    with pytest.raises(ValueError, match="one label"):
        make_trainer(reward_model=two_labels)
    with pytest.raises(ValueError, match="value_model is None and model has adapters"):
        make_trainer(model=adapted)
    with pytest.raises(ValueError, match="soft prompts are not supported"):
        make_trainer(peft_config=peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="eval_dataset is a dict"):
        make_trainer(eval_dataset={"a": prompts})
    optimizer = torch.optim.SGD(tiny_causal_lm.parameters())
    with pytest.raises(ValueError, match="an optimizer is given"):
        make_trainer({"value_learning_rate": 1.0}, optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="it must be evaluate"):
        make_trainer().predict(prompts)


_TINY = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_T5 = {"vocab_size": 400, "d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "d_kv": 16}


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("LlamaModel", _TINY, "LlamaModel, which cannot generate"),
        ("LlamaForSequenceClassification", _TINY, "LlamaForSequenceClassification, which cannot generate"),
        ("RobertaForMaskedLM", _TINY, "RobertaForMaskedLM, which cannot generate"),
        ("T5ForConditionalGeneration", _T5, "T5ForConditionalGeneration, an encoder and a decoder"),
        ("RobertaForCausalLM", _TINY, "RobertaForCausalLM whose logits depend on later tokens"),
        ("BertLMHeadModel", _TINY, "BertLMHeadModel whose logits depend on later tokens"),
    ],
)
@pytest.mark.parametrize("role", ["model", "ref_model"])
def test_models_that_are_no_causal_lm_are_refused(
    make_trainer: Any, tiny_causal_lm: Any, role: str, architecture: str, options: dict[str, int], message: str
) -> None:
    made = getattr(transformers, architecture)
    model = made(made.config_class(**options, pad_token_id=0))
    value_model = ValueModel.from_backbone(copy.deepcopy(tiny_causal_lm))
    with pytest.raises(ValueError, match=f"^{role} is a {message}; it must "):
        make_trainer({"reward_kl_coef": 0.1}, value_model=value_model, **{role: model})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_made_from_an_encoder_is_a_causal_lm(dtype: torch.dtype) -> None:
    from fgrl.trainer.model_checks import check_causal_lm

    options = {**_TINY, "pad_token_id": 0, "initializer_range": 0.3}
    decoder = transformers.RobertaForCausalLM(transformers.RobertaConfig(**options, is_decoder=True))
    check_causal_lm(decoder.to(dtype), "model")
    encoder = transformers.RobertaForCausalLM(transformers.RobertaConfig(**options))
    with pytest.raises(ValueError, match="later tokens"):
        check_causal_lm(encoder.to(dtype), "model")


@pytest.mark.parametrize("bad", [-1, 400, 10**6])
def test_prompt_ids_outside_the_vocabulary_are_refused_when_the_trainer_is_built(make_trainer: Any, bad: int) -> None:
    rows = [{"prompt_ids": [5, 6]}, {"prompt_ids": [5, bad]}]
    with pytest.raises(ValueError, match=rf"dataset, row 2: prompt_ids has {bad}; it must be in \[0, \d+\)"):
        make_trainer(train_dataset=rows)
    with pytest.raises(ValueError, match="eval_dataset, row 2"):
        make_trainer(eval_dataset=rows)
