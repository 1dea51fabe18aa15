"""The PPO trainer where it could go wrong unnoticed: generation configs, shared weights, bad rewards, resuming."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fgrl import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardConfig, TokenRewardModel, ValueModel  # noqa: E402
from fgrl.trainer.ppo_metrics import RunningMeans  # noqa: E402


def weights_of(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_the_models_generation_config_does_not_change_the_samples(
    make_trainer: Any, rollout_of: Any, tiny_causal_lm: Any
) -> None:
    """A repetition penalty in it, as Qwen ships one, would make every sample off-policy."""
    policy = copy.deepcopy(tiny_causal_lm)
    policy.generation_config.repetition_penalty = 100.0
    policy.generation_config.no_repeat_ngram_size = 1
    policy.generation_config.min_p = 0.9
    samples = []
    for model in (tiny_causal_lm, policy):
        trainer = make_trainer({"max_completion_length": 24}, model=copy.deepcopy(model))
        torch.manual_seed(1)
        samples.append(rollout_of(trainer)[0].input_ids)
    assert torch.equal(*samples)
    assert trainer.policy.generation_config.repetition_penalty == 100.0  # and it is still there afterwards


def test_every_end_token_of_the_model_ends_a_completion(
    make_trainer: Any, rollout_of: Any, tiny_causal_lm: Any
) -> None:
    policy = copy.deepcopy(tiny_causal_lm)
    policy.generation_config.eos_token_id = list(range(100, 250))
    trainer = make_trainer({"max_completion_length": 30}, model=policy)
    rollout, metrics = rollout_of(trainer)
    length = rollout.completion_mask.shape[1]
    for ids, mask in zip(rollout.input_ids[:, -length:], rollout.completion_mask, strict=True):
        kept = ids[mask].tolist()
        assert not any(100 <= token < 250 for token in kept[:-1])
    assert metrics["finished"] > 0.5


def test_sampling_in_parts_gives_well_formed_rows(make_trainer: Any, rollout_of: Any) -> None:
    rollout, _ = rollout_of(make_trainer({"rollout_forward_batch_size": 4, "max_completion_length": 30}))
    assert rollout.input_ids.shape[0] == 6
    assert (rollout.completion_mask.long().diff(dim=1) <= 0).all()  # ones, then zeros
    length = rollout.completion_mask.shape[1]
    assert (rollout.input_ids[:, -length:][~rollout.completion_mask] == 0).all()
    assert not rollout.old_logprobs[~rollout.completion_mask].any()


@pytest.mark.parametrize("shared", ["ref_model", "reward_model", "value_model"])
def test_models_that_share_weights_with_the_policy_are_refused(
    make_trainer: Any, tiny_causal_lm: Any, shared: str
) -> None:
    policy = copy.deepcopy(tiny_causal_lm)
    if shared == "ref_model":
        arguments: dict[str, Any] = {"ref_model": policy}
    elif shared == "reward_model":
        arguments = {"reward_model": TokenRewardModel.from_backbone(policy, share=True)}
    else:
        value = ValueModel.from_backbone(policy)
        arguments = {"value_model": value, "reward_model": value}
    with pytest.raises(ValueError, match="shares weights"):
        make_trainer(model=policy, **arguments)


def test_a_reward_model_can_be_trained_again_afterwards(make_trainer: Any, tiny_causal_lm: Any) -> None:
    reward_model = TokenRewardModel.from_backbone(tiny_causal_lm)
    before = weights_of(reward_model)
    make_trainer(reward_model=reward_model).train()
    assert torch.equal(before, weights_of(reward_model))
    assert all(parameter.requires_grad for parameter in reward_model.parameters())


def test_a_plain_token_classification_model_is_a_reward_model(make_trainer: Any, rollout_of: Any) -> None:
    """GPT-2 has absolute positions: without position ids, left padding would change its rewards."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=64, num_labels=1)
    plain = transformers.GPT2ForTokenClassification(config).eval()
    torch.nn.init.normal_(plain.classifier.weight)
    options = {"whiten_advantages": False, "gamma": 0.0, "reward_kl_coef": 0.0}
    rollout, _ = rollout_of(make_trainer(options, reward_model=plain))
    for ids, attention, mask, rewards in zip(
        rollout.input_ids, rollout.attention_mask, rollout.completion_mask, rollout.advantages, strict=True
    ):
        with torch.no_grad():
            expected = plain(input_ids=ids[attention.bool()][None]).logits[0, :, 0]
        length = int(mask.sum())
        torch.testing.assert_close(rewards[:length], expected[-length:], atol=1e-5, rtol=1e-4)


def give(value: Any) -> Any:
    """A reward function that returns `value` for the first completion and 1 for the others."""

    def reward(completions: list[str], **columns: Any) -> list[Any]:
        return [value] + [1.0] * (len(completions) - 1)

    return reward


def test_none_is_no_opinion(make_trainer: Any, rollout_of: Any) -> None:
    assert rollout_of(make_trainer(reward_model=give(None)))[1]["reward"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("nan")] * 6], ids=["nan", "inf", "nan token"])
def test_a_reward_that_is_not_finite_stops_the_run(make_trainer: Any, rollout_of: Any, value: Any) -> None:
    trainer = make_trainer(reward_model=give(value), config={"generation_kwargs": {"min_new_tokens": 6}})
    with pytest.raises(ValueError, match=r"reward gave completion 0 .* NaN or infinite"):
        rollout_of(trainer)


def test_a_number_for_all_completions_is_refused(make_trainer: Any, rollout_of: Any) -> None:
    with pytest.raises(ValueError, match="returned a float; it must return 6 rewards"):
        rollout_of(make_trainer(reward_model=lambda completions, **columns: 1.0))


def test_functions_get_messages_for_chat_prompts_the_state_and_no_clashing_columns(make_trainer: Any) -> None:
    seen: dict[str, Any] = {}

    def reward(completions: Any, trainer_state: Any, **columns: Any) -> list[float]:
        seen.update(columns, completions=completions, calls=seen.get("calls", 0) + 1, step=trainer_state.global_step)
        return [1.0] * len(completions)

    chat = [{"role": "user", "content": "who"}]
    rows = [{"prompt": chat, "completions": "a column", "answer": index} for index in range(3)]
    trainer = make_trainer({"max_steps": 1, "rollout_forward_batch_size": 2}, train_dataset=rows, reward_model=reward)
    trainer.train()
    assert seen["completions"][0][0]["role"] == "assistant"
    assert sorted(seen["answer"]) == [0, 1, 2]
    assert seen["step"] == 0
    assert seen["calls"] == 1  # once a rollout, whatever the batch size of the models


def test_the_policy_by_name_is_loaded_in_float32_with_its_tokenizer(
    make_trainer: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_causal_lm.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny_tokenizer.save_pretrained(tmp_path / "half")
    trainer = make_trainer(model=str(tmp_path / "half"), processing_class=None)
    assert trainer.policy.dtype == torch.float32
    assert trainer.processing_class.get_vocab() == tiny_tokenizer.get_vocab()


@pytest.mark.parametrize("which", ["model", "value_model"])
def test_half_precision_weights_that_are_trained_warn(make_trainer: Any, tiny_causal_lm: Any, which: str) -> None:
    model = copy.deepcopy(tiny_causal_lm).to(torch.bfloat16)
    if which == "value_model":
        model = ValueModel.from_backbone(model, dtype="auto")
    with pytest.warns(UserWarning, match=f"{which} has weights to train in torch.bfloat16"):
        make_trainer(**{which: model})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make_trainer()
        make_trainer(ref_model=copy.deepcopy(tiny_causal_lm).to(torch.bfloat16))


@pytest.fixture
def half_folder(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> str:
    """A checkpoint in bfloat16."""
    copy.deepcopy(tiny_causal_lm).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny_tokenizer.save_pretrained(tmp_path / "half")
    return str(tmp_path / "half")


def dtypes(trainer: Any) -> list[torch.dtype]:
    models = (trainer.policy, trainer.value_model, trainer._maker.reference, trainer._maker.sources[0].source)
    return [next(model.parameters()).dtype for model in models if isinstance(model, torch.nn.Module)]


def test_models_by_name_are_trained_in_float32_and_scored_in_the_dtype_of_their_checkpoint(
    make_trainer: Any, half_folder: str
) -> None:
    names = dict.fromkeys(("model", "value_model", "ref_model", "reward_model"), half_folder)
    trainer = make_trainer(**names, processing_class=None)
    assert dtypes(trainer) == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    assert not any(parameter.requires_grad for parameter in trainer._maker.reference.parameters())
    trainer.train()
    options = {"dtype": "auto", "value_dtype": "float64", "ref_dtype": "float32", "reward_dtype": "float16"}
    assert dtypes(make_trainer(options, **names)) == [torch.bfloat16, torch.float64, torch.float32, torch.float16]


def test_models_made_from_the_policy_have_the_dtype_asked_for(make_trainer: Any) -> None:
    trainer = make_trainer({"value_dtype": "bfloat16", "ref_dtype": "bfloat16"})
    assert dtypes(trainer) == [torch.float32, torch.bfloat16, torch.bfloat16]
    for option, which in (("dtype", "model"), ("value_dtype", "value_model"), ("ref_dtype", "ref_model")):
        given = {} if which == "model" else {which: ValueModel.from_backbone(trainer.policy)}
        with pytest.raises(ValueError, match=f"^{option} is 'float32' and {which} is in memory"):
            make_trainer({option: "float32"}, **given)


def test_weights_in_half_precision_hardly_move(make_trainer: Any, half_folder: str) -> None:
    """Both runs start from the same numbers; at a learning rate of 1e-5, most updates are below half a bf16 step."""
    shares = []
    for dtype in (None, "bfloat16"):
        trainer = make_trainer({"dtype": dtype, "learning_rate": 1e-5, "max_steps": 4}, model=half_folder)
        before = weights_of(trainer.policy.model.layers).float()
        trainer.train()
        shares.append(float((weights_of(trainer.policy.model.layers) != before).float().mean()))
    assert shares[0] > 0.9
    assert shares[1] < 0.5


def test_bf16_autocast_keeps_logprobs_values_and_losses_in_fp32(make_trainer: Any, rollout_of: Any) -> None:
    trainer = make_trainer({"bf16": True})
    rollout, _ = rollout_of(trainer)
    assert rollout.old_logprobs.dtype == rollout.old_values.dtype == rollout.advantages.dtype == torch.float32
    trainer.train()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.policy.parameters())


def test_token_ids_may_stand_in_for_prompts_in_all_rows_or_none(make_trainer: Any) -> None:
    rows = [{"prompt_ids": [5, 6, 7]}, {"prompt_ids": [8]}, {"prompt_ids": [9, 10]}]
    make_trainer({"max_steps": 1}, train_dataset=rows).train()
    with pytest.raises(ValueError, match="train_dataset has prompt_ids in some rows only; row 2 has none"):
        make_trainer(train_dataset=[rows[0], {"prompt": "who"}])
    with pytest.raises(ValueError, match="train_dataset, row 2: prompt_ids is empty"):
        make_trainer(train_dataset=[rows[0], {"prompt_ids": []}])


def test_a_second_run_starts_with_a_rollout_of_its_own(make_trainer: Any) -> None:
    calls = []

    def reward(completions: list[str], **columns: Any) -> list[float]:
        calls.append(len(completions))
        return [1.0] * len(completions)

    trainer = make_trainer({"max_steps": 1, "value_learning_rate": 1e-3}, reward_model=reward)
    trainer.train()
    trainer.train()
    assert len(calls) == 2
    assert trainer._rollout is None  # and nothing is held afterwards


def test_checkpoints_wait_for_the_end_of_a_rollout(make_trainer: Any, tmp_path: Path) -> None:
    config = {"max_steps": 7, "num_ppo_epochs": 4, "save_strategy": "steps", "save_steps": 3}
    make_trainer(config).train()
    saved = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert saved == ["checkpoint-4", "checkpoint-7"]  # due at 3, 6 and 7; the run ends at 7


def test_a_run_that_stopped_inside_a_rollout_goes_on_with_the_next_prompts(make_trainer: Any) -> None:
    """Three passes of four were made; the fourth completes the rollout, and then the next one begins."""
    seen = []

    def reward(prompts: list[str], **columns: Any) -> list[float]:
        seen.append(sorted(prompts))
        return [1.0] * len(prompts)

    config = {"num_ppo_epochs": 4, "save_strategy": "steps", "save_steps": 3}
    make_trainer({**config, "max_steps": 3}, reward_model=reward).train()
    trainer = make_trainer({**config, "max_steps": 8}, reward_model=reward)
    trainer.train(resume_from_checkpoint=str(Path(trainer.args.output_dir) / "checkpoint-3"))
    first, again, second = seen
    assert first == again
    assert not set(first) & set(second)


def test_gradient_checkpointing_changes_memory_and_nothing_else(make_trainer: Any) -> None:
    results = []
    for enabled in (False, True):
        trainer = make_trainer({"learning_rate": 1e-2, "gradient_checkpointing": enabled})
        trainer.train()
        results.append(weights_of(trainer.policy))
    torch.testing.assert_close(*results)


def test_the_best_checkpoint_is_loaded_at_the_end(make_trainer: Any, prompts: Any, tmp_path: Path) -> None:
    config = {
        "max_steps": 4,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "completion_length",
        "greater_is_better": True,
    }
    trainer = make_trainer(config, eval_dataset=prompts[:2])
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    saved = transformers.AutoModelForCausalLM.from_pretrained(best)
    assert torch.equal(weights_of(saved), weights_of(trainer.policy))
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 2


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


def test_prompts_come_in_their_own_order_where_that_is_asked_for(make_trainer: Any) -> None:
    seen: list[str] = []

    def reward(prompts: list[str], **columns: Any) -> list[float]:
        seen.extend(prompts)
        return [1.0] * len(prompts)

    trainer = make_trainer({"train_sampling_strategy": "sequential"}, reward_model=reward)
    trainer.train()
    assert seen[:3] == [row["prompt"] for row in trainer.train_dataset[:3]]


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
        make_trainer({"kl_coef": 0.1}, value_model=value_model, **{role: model})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_made_from_an_encoder_is_a_causal_lm(dtype: torch.dtype) -> None:
    from fgrl.trainer.model_checks import check_causal_lm

    options = {**_TINY, "pad_token_id": 0, "initializer_range": 0.3}
    decoder = transformers.RobertaForCausalLM(transformers.RobertaConfig(**options, is_decoder=True))
    check_causal_lm(decoder.to(dtype), "model")
    encoder = transformers.RobertaForCausalLM(transformers.RobertaConfig(**options))
    with pytest.raises(ValueError, match="later tokens"):
        check_causal_lm(encoder.to(dtype), "model")


def test_running_means_weigh_and_maxima_keep_the_largest() -> None:
    class OneProcess:
        @staticmethod
        def reduce(table: torch.Tensor, how: str) -> torch.Tensor:
            return table

        gather = staticmethod(lambda table: table)

    means = RunningMeans(torch.device("cpu"))
    means.add({"share": 1.0}, weight=3)
    means.add({"share": torch.tensor(0.0)}, weight=torch.tensor(1))
    means.add({"share": float("nan")}, weight=0)  # nothing was there to take a share of
    means.add_maximum("ratio_max", 1.0)
    means.add_maximum("ratio_max", torch.tensor(9.0))
    assert means.collect(OneProcess()) == {"share": 0.75, "ratio_max": 9.0}
    assert means.collect(OneProcess()) == {}


def test_defaults_need_no_arguments_but_a_folder(tmp_path: Path) -> None:
    assert FineGrainedPPOConfig(str(tmp_path), report_to="none").steps_per_rollout == 4
    with pytest.raises(ValueError, match="reward_model is None"):
        FineGrainedPPOTrainer("no-such-model", processing_class=object())  # type: ignore[arg-type]


def column_rows() -> list[dict[str, Any]]:
    """A column in the second half of the rows only, and one in a single row."""
    rows: list[dict[str, Any]] = [{"prompt": f"who {index}"} for index in range(6)]
    for row in rows[3:]:
        row["answer"] = row["prompt"]
    rows[4]["source"] = "a"
    return rows


def as_file(rows: list[dict[str, Any]], folder: Path) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def as_ids(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    return [{**row, "prompt_ids": [5, 6]} for row in rows]


def as_arrow(rows: list[dict[str, Any]], folder: Path) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list([{"answer": None, "source": None, **row} for row in rows])


@pytest.mark.parametrize(
    "kind", [lambda rows, folder: rows, as_file, as_ids, as_arrow], ids=["rows", "file", "ids", "arrow"]
)
def test_functions_get_all_columns_of_the_data_set_in_every_call(make_trainer: Any, kind: Any, tmp_path: Path) -> None:
    calls = []

    def reward(
        prompts: list[str], completions: Any, answer: list[Any], source: list[Any], **columns: Any
    ) -> list[float]:
        assert answer == [prompt if prompt[-1] in "345" else None for prompt in prompts]
        assert source == ["a" if prompt[-1] == "4" else None for prompt in prompts]
        calls.append(len(prompts))
        return [1.0] * len(prompts)

    rows = kind(column_rows(), tmp_path)
    config = {"per_device_train_batch_size": 1, "num_ppo_epochs": 1, "max_steps": 6, "per_device_eval_batch_size": 2}
    trainer = make_trainer(config, train_dataset=rows, eval_dataset=rows, reward_model=reward)
    trainer.train()
    trainer.evaluate()
    trainer.evaluate(rows)
    assert calls == [1] * 6 + [2] * 6


@pytest.mark.parametrize("bad", [-1, 400, 10**6])
def test_prompt_ids_outside_the_vocabulary_are_refused_when_the_trainer_is_built(make_trainer: Any, bad: int) -> None:
    rows = [{"prompt_ids": [5, 6]}, {"prompt_ids": [5, bad]}]
    with pytest.raises(ValueError, match=rf"dataset, row 2: prompt_ids has {bad}; it must be in \[0, \d+\)"):
        make_trainer(train_dataset=rows)
    with pytest.raises(ValueError, match="eval_dataset, row 2"):
        make_trainer(eval_dataset=rows)
