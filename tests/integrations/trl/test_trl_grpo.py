"""`FineGrainedGRPOTrainer`: token rewards make `(B, T)` advantages, and everything else is TRL's `GRPOTrainer`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from trl import GRPOTrainer
from trl_task import IDS, PROMPTS, ROLLOUT, by_token, config, expected_advantages, history, outcome, rollout, weights

from fgrl import TokenRewardModel
from fgrl.integrations.trl import FineGrainedGRPOTrainer
from fgrl.integrations.trl import grpo as adapter

LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]


def trained(
    kind: type[GRPOTrainer],
    rewards: Any,
    model: Path,
    tokenizer: Any,
    folder: Path,
    *,
    peft: Any = None,
    **options: Any,
) -> Any:
    trainer = kind(
        str(model),
        reward_funcs=rewards,
        args=config(folder, **options),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
        peft_config=peft,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_with_outcome_rewards_training_is_trls(
    loss_type: str, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Two updates of one batch of completions (the second off-policy), with a KL term."""
    options = {"loss_type": loss_type, "num_iterations": 2, "beta": 0.1}
    stock, ours = (
        trained(kind, outcome, tiny_checkpoint, tiny_tokenizer, tmp_path, **options)
        for kind in (GRPOTrainer, FineGrainedGRPOTrainer)
    )
    assert len(history(ours)) == 2
    assert any(row["grad_norm"] > 0 for row in history(ours))
    for before, after in zip(history(stock), history(ours), strict=True):
        assert after == pytest.approx(before, rel=1e-4, abs=1e-5, nan_ok=True)
    torch.testing.assert_close(weights(ours.model), weights(stock.model), rtol=1e-3, atol=1e-4)


class Stock(GRPOTrainer):
    """TRL's trainer, given the advantages that ours computes."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        rewards = by_token(output["completion_ids"].tolist())
        output["advantages"] = torch.tensor(expected_advantages(rewards, output["completion_mask"].tolist(), 4))
        return output


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_with_token_rewards_loss_and_weights_are_trls_for_those_advantages(
    loss_type: str, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    options = {"loss_type": loss_type, "num_iterations": 2, "beta": 0.1}
    ours = trained(FineGrainedGRPOTrainer, by_token, tiny_checkpoint, tiny_tokenizer, tmp_path, **options)
    zero = lambda completion_ids, **_: [0.0] * len(completion_ids)  # noqa: E731
    stock = trained(Stock, zero, tiny_checkpoint, tiny_tokenizer, tmp_path, **options)
    clipping = (name for name in history(stock)[0] if name.startswith(("clip_ratio/", "cispo_clip", "vespo/")))
    names = {"loss", "grad_norm", "kl", "entropy", *clipping}
    for before, after in zip(history(stock), history(ours), strict=True):
        for name in names:
            assert after[name] == pytest.approx(before[name], rel=1e-3, abs=1e-4, nan_ok=True), name
    torch.testing.assert_close(weights(ours.model), weights(stock.model), rtol=1e-3, atol=2e-4)


def scored(rewards: Any, model: Path, tokenizer: Any, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The trainer and the batch it makes of `ROLLOUT`."""
    special = {name: options.pop(name) for name in ("token_gamma", "reward_processing_classes") if name in options}
    trainer = FineGrainedGRPOTrainer(
        str(model),
        reward_funcs=rewards,
        args=config(folder, per_device_train_batch_size=8, **options),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
        rollout_func=rollout,
        **special,
    )
    trainer.model.train()
    return trainer, trainer._generate_and_score_completions([{"prompt": "a"}] * 4 + [{"prompt": "b"}] * 4)


def as_rows(output: dict[str, Any]) -> list[list[float]]:
    return output["advantages"].tolist()


def masks_of(output: dict[str, Any]) -> list[list[int]]:
    return (output["completion_mask"] * output["tool_mask"]).tolist()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("with_outcome", [False, True], ids=["tokens", "both"])
def test_advantages_are_those_of_scalar_loops(
    scale: str, gamma: float, with_outcome: bool, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Holes (tools) neither count nor end the sum; the outcome advantage is TRL's."""
    rewards = [by_token, outcome] if with_outcome else by_token
    _, output = scored(rewards, tiny_checkpoint, tiny_tokenizer, tmp_path, scale_rewards=scale, token_gamma=gamma)
    outcomes = outcome(IDS) if with_outcome else None
    expected = expected_advantages(by_token(IDS), masks_of(output), 4, outcomes=outcomes, scale=scale, gamma=gamma)
    assert output["advantages"].shape == output["completion_ids"].shape
    for row, wanted in zip(as_rows(output), expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_weights_add_up_functions_and_none_is_no_opinion(
    tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def length(completion_ids: Any, **_: Any) -> list[Any]:
        return [None if i in (1, 4) else [0.1 * len(ids)] * len(ids) for i, ids in enumerate(completion_ids)]

    async def even(completion_ids: Any, **_: Any) -> list[Any]:
        return [None if i in (2, 4) else torch.tensor([t % 2 for t in ids]) for i, ids in enumerate(completion_ids)]

    trainer, output = scored(
        [length, even, outcome], tiny_checkpoint, tiny_tokenizer, tmp_path, reward_weights=[2.0, 0.5, 3.0]
    )
    both = [
        None if i == 4 else [0.2 * len(ids) * (i not in (1,)) + 0.5 * (t % 2) * (i != 2) for t in ids]
        for i, ids in enumerate(IDS)
    ]
    outcomes = [3.0 * value for value in outcome(IDS)]
    expected = expected_advantages(both, masks_of(output), 4, outcomes=outcomes)
    for row, wanted in zip(as_rows(output), expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert trainer.reward_weights.tolist() == [2.0, 0.5, 3.0]
    assert trainer.reward_funcs == [length, even, outcome]


def test_a_completion_without_an_outcome_stays_out_of_the_baseline_though_its_tokens_are_scored(
    tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """As in TRL without token rewards; those are all equal here, so that they add nothing."""

    def partly(completion_ids: Any, **_: Any) -> list[Any]:
        return [None if i in (1, 6) else reward for i, reward in enumerate(outcome(completion_ids))]

    def level(completion_ids: Any, **_: Any) -> list[Any]:
        return [[0.5] * len(ids) for ids in completion_ids]

    _, stock = scored(partly, tiny_checkpoint, tiny_tokenizer, tmp_path)
    trainer, output = scored([level, partly], tiny_checkpoint, tiny_tokenizer, tmp_path)
    wanted = stock["advantages"][:, None] * output["completion_mask"] * output["tool_mask"]
    assert wanted.any()
    torch.testing.assert_close(output["advantages"], wanted)
    metrics = trainer._metrics["train"]
    assert metrics["rewards/level/mean"][-1] == pytest.approx(sum(0.5 * len(ids) for ids in IDS) / 8)


def test_metrics_keep_trls_names_and_count_a_list_by_its_sum(
    tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def summed(completion_ids: Any, **_: Any) -> list[float]:
        return [sum(rewards) for rewards in by_token(completion_ids)]

    summed.__name__ = "by_token"
    by_list, _ = scored(by_token, tiny_checkpoint, tiny_tokenizer, tmp_path)
    by_number, _ = scored(summed, tiny_checkpoint, tiny_tokenizer, tmp_path)
    found, wanted = ({name: values[-1] for name, values in t._metrics["train"].items()} for t in (by_list, by_number))
    assert found == pytest.approx(wanted, rel=1e-5)
    assert list(by_list._logs["rewards"]["by_token"]) == pytest.approx(list(by_number._logs["rewards"]["by_token"]))
    assert len(by_list._logs["advantages"]) == 8


def test_truncated_completions_that_trl_masks_have_no_part(
    tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Rows 3 and 7 do not end: whatever their token rewards are, the others' advantages stay."""

    def with_garbage(completion_ids: Any, **_: Any) -> list[Any]:
        return [[1e6] * len(r) if i in (3, 7) else r for i, r in enumerate(by_token(completion_ids))]

    outputs = [
        scored(f, tiny_checkpoint, tiny_tokenizer, tmp_path, mask_truncated_completions=True)[1]
        for f in (by_token, with_garbage)
    ]
    assert torch.equal(outputs[0]["advantages"], outputs[1]["advantages"])
    assert not outputs[0]["advantages"][[3, 7]].any()


@pytest.mark.parametrize("given", ["TokenRewardModel", "token classifier", "path"])
def test_a_token_reward_model_scores_each_completion_token(
    given: str, tiny_causal_lm: Any, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = TokenRewardModel.from_backbone(tiny_causal_lm)
    torch.nn.init.normal_(model.model.score.weight)
    model.eval().save_pretrained(tmp_path / "rewards")
    with torch.no_grad():
        wanted = [
            model(torch.tensor([[*prompt, *ids]]))[0, len(prompt) :].tolist()
            for prompt, ids in zip(ROLLOUT["prompt_ids"], IDS, strict=True)
        ]
    source = {"TokenRewardModel": model, "token classifier": model.model, "path": str(tmp_path / "rewards")}[given]
    trainer, output = scored(
        [source, outcome], tiny_checkpoint, tiny_tokenizer, tmp_path, reward_processing_classes=[tiny_tokenizer, None]
    )
    expected = expected_advantages(wanted, masks_of(output), 4, outcomes=outcome(IDS))
    for row, values in zip(as_rows(output), expected, strict=True):
        assert row == pytest.approx(values, rel=1e-3, abs=1e-3)
    assert len(trainer.reward_func_names) == 2


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ([[1.0]] * 8, "returned 1 token rewards for completion 0; they must be 4, one for each of its completion_ids"),
        ([1.0, [1.0, 2.0], *[1.0] * 6], "returned a list for completion 1 and the other kind before; it must return"),
        ([[1.0, float("nan"), 0.0, 0.0], *[None] * 7], "a token reward for completion 0 that is not finite; all must"),
        ([[1.0, None, 0.0, 0.0], *[None] * 7], "for completion 0; it must be one number, a list of one number a token"),
        ([[[1.0]] * 4, *[None] * 7], "for completion 0; it must be one number, a list of one number a token"),
        (["good", *[None] * 7], "returned 'good' for completion 0; it must be one number"),
    ],
    ids=["length", "mixed", "nan", "none inside", "nested", "text"],
)
def test_rewards_of_another_form_are_refused(
    returned: Any, sentence: str, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def judge(**_: Any) -> Any:
        return returned

    with pytest.raises(ValueError) as caught:
        scored(judge, tiny_checkpoint, tiny_tokenizer, tmp_path)
    assert "reward function 'judge' returned" in str(caught.value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("gamma", [-0.1, 1.5, float("nan"), "1"])
def test_a_discount_outside_0_and_1_is_refused(gamma: Any, tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"token_gamma is .*; it must be in \[0, 1\]"):
        FineGrainedGRPOTrainer(str(tiny_checkpoint), by_token, token_gamma=gamma)


def test_a_reward_model_of_another_vocabulary_is_refused(
    tiny_causal_lm: Any, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_causal_lm.resize_token_embeddings(100)
    model = TokenRewardModel.from_backbone(tiny_causal_lm)
    with pytest.raises(ValueError, match=r"reward_funcs\[0\] has"):
        scored(model, tiny_checkpoint, tiny_tokenizer, tmp_path)


def test_sequence_ratios_are_warned_of(tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="act through their mean alone"):
        scored(by_token, tiny_checkpoint, tiny_tokenizer, tmp_path, importance_sampling_level="sequence")


@pytest.mark.parametrize("peft", [False, True], ids=["full", "LoRA"])
def test_gradient_accumulation_and_checkpointing_change_nothing(
    peft: bool, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of eight completions, at once or two at a time with activations recomputed; `dapo` counts tokens."""
    monkeypatch.setattr(adapter.GRPOTrainer, "_generate", lambda self, prompts: fixed_generation())
    adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if peft else None
    runs = [
        trained(
            FineGrainedGRPOTrainer,
            [by_token, outcome],
            tiny_checkpoint,
            tiny_tokenizer,
            tmp_path,
            peft=adapters,
            max_steps=1,
            loss_type="dapo",
            per_device_train_batch_size=8 // parts,
            gradient_accumulation_steps=parts,
            gradient_checkpointing=parts > 1,
        )
        for parts in (1, 4)
    ]
    once, accumulated = (history(run)[0] for run in runs)
    assert accumulated["grad_norm"] == pytest.approx(once["grad_norm"], rel=1e-3)
    assert once["grad_norm"] > 0.01
    torch.testing.assert_close(weights(runs[0].model), weights(runs[1].model), rtol=1e-3, atol=1e-3)


def fixed_generation() -> tuple[Any, ...]:
    completions = ["text"] * 8
    return ROLLOUT["prompt_ids"], IDS, ROLLOUT["env_mask"], completions, None, {}, None, []


def test_groups_spread_over_processes_are_compared_whole(
    tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Two processes hold four completions each of one group of eight; their longest completions differ."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    script = Path(__file__).with_name("trl_two_processes.py")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(
        [*command, str(script), str(tiny_checkpoint), str(tmp_path)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[:4000]
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    lengths = {len(row) for part in parts for row in part["advantages"]}
    assert lengths == {6, 3}
    masks = [row + [0] * (6 - len(row)) for part in parts for row in part["mask"]]
    expected = expected_advantages(by_token(IDS), masks, 8, outcomes=outcome(IDS))
    for row, wanted in zip((row for part in parts for row in part["advantages"]), expected, strict=True):
        assert row == pytest.approx(wanted[: len(row)], rel=1e-4, abs=1e-5)
    assert parts[0]["reward"] == pytest.approx(parts[1]["reward"])
    assert len(parts[0]["logged"]) == 8


def test_tokens_with_reward_become_likely(tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Each token is paid for itself (`token_gamma=0`), so every position learns at once.

    A third of the vocabulary is paid. Untrained, the mean over the last five steps' 640 tokens has a standard deviation
    of 0.02 around 0.33; it is asserted to be above 0.6, and came out above 0.95 for each of ten seeds.
    """

    def third(completion_ids: Any, **_: Any) -> list[list[float]]:
        return [[float(token % 3 == 0) for token in ids] for ids in completion_ids]

    trainer = FineGrainedGRPOTrainer(
        str(tiny_checkpoint),
        reward_funcs=third,
        args=config(
            tmp_path, max_steps=16, per_device_train_batch_size=16, learning_rate=2e-2, lr_scheduler_type="constant"
        ),
        train_dataset=PROMPTS,
        processing_class=tiny_tokenizer,
        token_gamma=0.0,
    )
    trainer.train()
    rates = [row["reward"] / row["completions/mean_length"] for row in history(trainer)]
    assert sum(rates[-5:]) / 5 > 0.6
