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

from fgrl import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel, ValueModel  # noqa: E402
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


def test_prompts_come_in_their_own_order_where_that_is_asked_for(make_trainer: Any) -> None:
    seen: list[str] = []

    def reward(prompts: list[str], **columns: Any) -> list[float]:
        seen.extend(prompts)
        return [1.0] * len(prompts)

    trainer = make_trainer({"train_sampling_strategy": "sequential"}, reward_model=reward)
    trainer.train()
    assert seen[:3] == [row["prompt"] for row in trainer.train_dataset[:3]]
