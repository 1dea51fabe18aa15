"""The PPO trainer: what a rollout holds, what one step does, and that it learns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fgrl import FineGrainedPPOConfig, TokenRewardModel, ValueModel  # noqa: E402
from fgrl.trainer.ppo_data import RolloutSampler  # noqa: E402
from fgrl.trainer.sampling import sample  # noqa: E402


def count_letters(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
    """A sequence-level reward."""
    return [float(len(text)) for text in completions]


def test_rollout_logprobs_and_values_are_those_of_the_models_on_unpadded_sequences(
    rollout_of: Any, prompts: Any, make_trainer: Any
) -> None:
    value_model = ValueModel.from_backbone(make_trainer().policy)
    torch.nn.init.normal_(value_model.model.score.weight)
    trainer = make_trainer({"temperature": 0.7, "whiten_advantages": False}, value_model=value_model)
    rollout, _ = rollout_of(trainer)
    for row in range(len(prompts)):
        keep = rollout.attention_mask[row].bool()
        ids = rollout.input_ids[row][keep][None]
        length = int(rollout.completion_mask[row].sum())
        with torch.no_grad():
            logits = trainer.policy(ids).logits[0] / 0.7
            values = trainer.value_model(ids)[0]
        logprobs = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(rollout.old_logprobs[row, :length], logprobs[-length:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(rollout.old_values[row, :length], values[-length - 1 : -1], atol=1e-5, rtol=1e-4)
        assert not rollout.old_logprobs[row, length:].any()


def test_a_completion_ends_with_its_first_eos(tiny_causal_lm: Any) -> None:
    ends_at_once = copy.deepcopy(tiny_causal_lm)
    torch.nn.init.zeros_(ends_at_once.lm_head.weight)
    completions = sample(
        ends_at_once, [[5, 6], [7]], pad_token_id=0, eos_token_ids=list(range(200)), max_new_tokens=20, top_k=0
    )
    for ids, mask, finished in zip(
        completions.completion_ids, completions.completion_mask, completions.finished, strict=True
    ):
        length = int(mask.sum())
        assert bool(finished) == bool((ids[mask] < 200).any())
        assert mask[:length].all()
        assert (ids[:length][:-1] >= 200).all()
        assert (ids[length:] == 0).all()
    assert completions.attention_mask[1, 0] == 0
    assert completions.attention_mask[0, 0] == 1


def test_reference_is_a_frozen_copy_so_the_first_kl_is_zero_and_later_ones_are_not(
    rollout_of: Any, make_trainer: Any
) -> None:
    trainer = make_trainer({"learning_rate": 1e-2, "max_steps": 4})
    assert float(rollout_of(trainer)[1]["kl_per_sequence"]) == pytest.approx(0, abs=1e-5)
    trainer.train()
    assert abs(float(rollout_of(trainer)[1]["kl_per_sequence"])) > 1e-3


def test_reward_model_rewards_are_read_at_the_completion_tokens(
    rollout_of: Any, make_trainer: Any, tiny_causal_lm: Any
) -> None:
    reward_model = TokenRewardModel.from_backbone(tiny_causal_lm)
    torch.nn.init.normal_(reward_model.model.score.weight)
    config = {"whiten_advantages": False, "gamma": 0.0, "reward_kl_coef": 0.0, "lam": 0.0}
    rollout, _ = rollout_of(make_trainer(config, reward_model=reward_model))
    with torch.no_grad():
        rewards = reward_model(rollout.input_ids, rollout.attention_mask)
    length = rollout.completion_mask.shape[1]
    expected = torch.where(rollout.completion_mask, rewards[:, -length:], 0.0)
    torch.testing.assert_close(rollout.advantages, expected)  # the value head starts at 0


def test_sequence_level_keeps_only_the_last_tokens_reward(rollout_of: Any, make_trainer: Any) -> None:
    def position(completion_ids: Any, **columns: Any) -> Any:
        return [[float(index + 1) for index in range(len(ids))] for ids in completion_ids]

    config = {"whiten_advantages": False, "gamma": 0.0, "reward_kl_coef": 0.0, "reward_level": "sequence"}
    rollout, metrics = rollout_of(make_trainer(config, reward_model=position))
    lengths = rollout.completion_mask.sum(1)
    assert torch.equal(rollout.advantages.sum(1), lengths.float())
    assert ((rollout.advantages != 0).sum(1) == 1).all()
    assert float(metrics["reward"]) == pytest.approx(float(lengths.float().mean()))


def test_sources_add_up_with_their_weights_and_see_the_columns(
    rollout_of: Any, prompts: Any, make_trainer: Any
) -> None:
    seen = {}

    def constant(prompts: Any, completions: Any, wanted: list[str], **columns: Any) -> list[float]:
        seen["wanted"], seen["prompts"] = wanted, prompts
        return [1.0] * len(completions)

    trainer = make_trainer({"reward_weights": [0.5, 2.0]}, reward_model=[count_letters, constant])
    _, metrics = rollout_of(trainer)
    assert seen["wanted"] == [row["wanted"] for row in prompts]
    assert seen["prompts"] == [row["prompt"] for row in prompts]
    assert float(metrics["reward"]) == pytest.approx(float(metrics["reward/count_letters"]) + 2.0)


@pytest.mark.parametrize("option", ["missing_eos_penalty", "bootstrap_truncated"])
def test_option_for_truncated_completions_leaves_finished_ones_alone(
    rollout_of: Any, make_trainer: Any, tiny_causal_lm: Any, option: str
) -> None:
    """With half of the vocabulary ending a completion of at most two tokens, both kinds occur."""
    value_model = ValueModel.from_backbone(tiny_causal_lm)
    torch.nn.init.zeros_(value_model.model.score.weight)
    torch.nn.init.constant_(value_model.model.score.bias, -5.0)
    config = {
        "whiten_advantages": False,
        "reward_kl_coef": 0.0,
        "max_completion_length": 2,
        "per_device_train_batch_size": 6,
    }
    eos = {"generation_kwargs": {"suppress_tokens": list(range(3, 350))}}
    rollouts = []
    for extra in ({}, {option: 5.0 if option == "missing_eos_penalty" else True}):
        trainer = make_trainer({**config, **eos, **extra}, value_model=copy.deepcopy(value_model))
        torch.manual_seed(4)
        rollouts.append(rollout_of(trainer))
    (without, metrics), (with_option, _) = rollouts
    assert torch.equal(without.input_ids, with_option.input_ids)
    finished = ((without.input_ids[:, -2:] == 2) & without.completion_mask).any(1)
    assert 0 < int(finished.sum()) < len(finished)
    assert float(metrics["finished"]) == pytest.approx(float(finished.float().mean()))
    change = (with_option.returns - without.returns)[:, 0]
    assert not change[finished].any()
    assert (change[~finished] < -4).all()


@pytest.mark.parametrize("aggregation", ["token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_accumulation_gives_the_step_of_one_big_batch(make_trainer: Any, aggregation: str) -> None:
    """The same six sequences in one pass of six, and in three passes of two, move the weights alike."""
    weights = []
    for size, passes in ((6, 1), (2, 3)):
        config = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": passes,
            "aggregation": aggregation,
            "optim": "sgd",
            "learning_rate": 1.0,
            "max_grad_norm": 0.0,
            "max_steps": 2,
            "lr_scheduler_type": "constant",
            "max_completion_length": 12,
        }
        trainer = make_trainer(config)
        trainer.train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.policy.parameters()]))
        start = torch.cat([parameter.detach().flatten() for parameter in make_trainer(config).policy.parameters()])
    moved = (weights[0] - start).norm()
    assert moved > 1e-3
    assert (weights[0] - weights[1]).norm() < 1e-4 * moved


@pytest.mark.parametrize(("reward_level", "length", "steps"), [("token", 4, 48), ("sequence", 2, 80)])
def test_it_learns(prompts: Any, make_trainer: Any, reward_level: str, length: int, steps: int) -> None:
    """The share of the best reward, over the last three rollouts, is far from chance for any seed.

    Over 30 seeds and more, the share was 0.86 to 1.00 (0.97, standard deviation 0.03) with a reward a token, and 0.85
    to 1.00 (0.99, 0.04) with one a sequence; of the first three rollouts it was 0.32 and 0.28 at most. The bound is
    more than ten standard deviations below: a failure by chance is far less likely than one in a thousand.
    """
    config = {
        "per_device_train_batch_size": 24,
        "num_ppo_epochs": 4,
        "learning_rate": 3e-2,
        "lr_scheduler_type": "constant",
        "max_steps": steps,
        "reward_kl_coef": 0.0,
        "lam": 0.95 if reward_level == "token" else 1.0,
        "reward_level": reward_level,
        "max_completion_length": length,
    }
    trainer = make_trainer(config, train_dataset=prompts * 4)
    trainer.train()
    best = length if reward_level == "token" else 1.0
    shares = [entry["reward"] / best for entry in trainer.state.log_history if "reward" in entry]
    assert len(shares) == steps // 4  # four optimizer steps for one rollout
    assert sum(shares[-3:]) / 3 > 0.6, shares


def test_checkpoints_are_plain_hugging_face_models(make_trainer: Any, tmp_path: Path, tiny_tokenizer: Any) -> None:
    trainer = make_trainer({"learning_rate": 1e-2})
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    policy = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    value = ValueModel.from_pretrained(tmp_path / "saved" / "value_model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for name, parameter in trainer.policy.named_parameters():
        assert torch.equal(parameter, policy.get_parameter(name)), name
    for name, parameter in trainer.value_model.named_parameters():
        assert torch.equal(parameter, value.get_parameter(name)), name
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()


def test_resuming_gives_the_run_that_was_never_interrupted(make_trainer: Any, tmp_path: Path) -> None:
    config = {"learning_rate": 1e-2, "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = make_trainer(config)
    whole.train()
    resumed = make_trainer({**config, "output_dir": str(tmp_path / "resumed")})
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert resumed.state.global_step == 8
    for name, parameter in whole.policy.named_parameters():
        torch.testing.assert_close(parameter, resumed.policy.get_parameter(name), msg=name)


def test_peft_trains_adapters_and_takes_the_bare_policy_as_reference(
    rollout_of: Any, make_trainer: Any, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer({"learning_rate": 1e-2, "max_steps": 6}, peft_config=config)
    frozen = {name: value.clone() for name, value in trainer.policy.named_parameters() if not value.requires_grad}
    assert float(rollout_of(trainer)[1]["kl_per_sequence"]) == pytest.approx(0, abs=1e-5)
    trainer.train()
    assert all(torch.equal(value, trainer.policy.get_parameter(name)) for name, value in frozen.items())
    assert abs(float(rollout_of(trainer)[1]["kl_per_sequence"])) > 1e-6
    trainer.save_model(str(tmp_path / "adapters"))
    assert (tmp_path / "adapters" / "adapter_model.safetensors").exists()


def test_value_learning_rate_is_the_value_models_alone(make_trainer: Any) -> None:
    trainer = make_trainer({"learning_rate": 0.0, "value_learning_rate": 1e-2, "reward_kl_coef": 0.0})
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(before[name], value)}
    assert moved
    assert all(name.startswith("value_model.") for name in moved)


def test_evaluate_samples_from_the_evaluation_prompts(prompts: Any, make_trainer: Any) -> None:
    trainer = make_trainer(eval_dataset=prompts[:2], reward_model=count_letters)
    metrics = trainer.evaluate()
    assert metrics["eval_reward"] > 0
    assert metrics["eval_completion_length"] <= 6


def test_total_episodes_sets_the_number_of_steps(make_trainer: Any) -> None:
    assert make_trainer({"total_episodes": 10, "max_steps": -1}).args.max_steps == 8  # 4 rollouts of 3, 2 epochs each


@pytest.mark.parametrize(("size", "group", "repeats"), [(5, 3, 2), (3, 8, 1), (6, 3, 4)])
def test_sampler_repeats_each_group_and_drops_no_prompt(size: int, group: int, repeats: int) -> None:
    sampler = RolloutSampler(size, group, repeats, shuffle=True, seed=0)
    order = list(sampler)
    assert len(order) == len(sampler)
    assert set(order) == set(range(size))
    for start in range(0, len(order), group * repeats):
        copies = [order[start + copy * group : start + (copy + 1) * group] for copy in range(repeats)]
        assert all(copy == copies[0] for copy in copies)
    sampler.epoch = 1
    assert size < 4 or list(sampler) != order


def bad_count(completions: list[str], **columns: Any) -> list[float]:
    return [0.0]


def bad_shape(completions: list[str], **columns: Any) -> list[list[float]]:
    return [[0.0] * 99] * len(completions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward_model": None}, "reward_model is None"),
        ({"reward_model": 3}, "reward_model is a int"),
        ({"processing_class": None}, "processing_class is None"),
        ({"train_dataset": None}, "train_dataset is None"),
        ({"train_dataset": []}, "train_dataset is empty"),
        ({"train_dataset": [{"text": "no prompt"}]}, "'prompt' is missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_one_clear_sentence(make_trainer: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(**arguments)


@pytest.mark.parametrize(("function", "message"), [(bad_count, "returned 1 rewards"), (bad_shape, "shape \\[99\\]")])
def test_bad_rewards_name_the_function(rollout_of: Any, make_trainer: Any, function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{function.__name__} .*{message}"):
        rollout_of(make_trainer(reward_model=function))


def test_a_reward_model_with_another_vocabulary_is_refused(make_trainer: Any, tiny_tokenizer: Any) -> None:
    other = copy.deepcopy(tiny_tokenizer)
    make_trainer(reward_processing_class=other)
    other.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match=rf"'<extra>' is id {len(tiny_tokenizer)} there and absent here"):
        make_trainer(reward_processing_class=other)


@pytest.mark.parametrize(
    ("option", "value"), [("num_ppo_epochs", 0), ("reward_level", "word"), ("total_episodes", 0), ("clip_low", -1.0)]
)
def test_bad_options_name_themselves(option: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=option):
        FineGrainedPPOConfig(output_dir=str(tmp_path), report_to="none", **{option: value})
