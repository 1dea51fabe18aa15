"""`TokenRewardTrainer`: it learns, its step is the same however the batch is cut, and what it saves loads again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_task import config, pairs
from torch import Tensor

transformers = pytest.importorskip("transformers")

from fgrl.data import EncodedPair, PairCollator, PairEncoder, StreamingPairDataset  # noqa: E402
from fgrl.models import TokenRewardModel  # noqa: E402
from fgrl.trainer import TokenRewardTrainer  # noqa: E402
from fgrl.trainer.reward_batch import count_pairs, last_token, split_sides  # noqa: E402
from fgrl.trainer.reward_data import encode_dataset  # noqa: E402

HUMAN_EDITS = Path(__file__).parents[2].parent / "shared" / "data" / "qa_feedback_edits.jsonl"


def unedited(pair: EncodedPair) -> EncodedPair:
    nothing = [False] * len(pair.edited_ids)
    return EncodedPair(pair.prompt_ids, pair.edited_ids, pair.edited_ids, nothing, nothing)


def losses(trainer: TokenRewardTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_learns_which_tokens_are_wrong(packed: bool, tiny_causal_lm: Any, tmp_path: Path) -> None:
    """Far from chance for any seed: over eight, the loss fell to 0.02, the AUCs were above 0.99, the margin above 5."""
    trainer = TokenRewardTrainer(
        TokenRewardModel.from_backbone(tiny_causal_lm),
        config(tmp_path, packed=packed, num_train_epochs=4),
        train_dataset=pairs(192),
        eval_dataset={"train": pairs(192), "held_out": pairs(64, seed=1)},
    )
    before = trainer.evaluate()
    assert before["eval_train_loss"] == pytest.approx(0.6931, abs=1e-4), "a head of zeros prefers nothing"
    assert before["eval_train_edit_auc"] == 0.5
    trainer.train()
    after = trainer.evaluate()
    assert sum(losses(trainer)[-8:]) < 0.2 * sum(losses(trainer)[:8])
    assert after["eval_train_edit_auc"] > 0.95
    assert after["eval_held_out_edit_auc"] > 0.85
    assert after["eval_held_out_pair_accuracy"] > 0.9
    assert after["eval_held_out_margin"] > 1
    assert "eval_held_out_span_auc" not in after, "no row has human spans"


def test_sequence_level_reads_the_last_token_only(model: TokenRewardModel, tmp_path: Path) -> None:
    trainer = TokenRewardTrainer(model, config(tmp_path, reward_level="sequence", unchanged_weight=5.0))
    batch = PairCollator(0)(pairs(4))
    loss, (margins, chosen, rejected) = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    last = [torch.stack([row[mask][-1] for row, mask in zip(*side[:2], strict=True)]) for side in (chosen, rejected)]
    torch.testing.assert_close(margins, last[0] - last[1])
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(last[0] - last[1]).mean())


def test_last_token_of_a_mask() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0]]).bool()
    assert last_token(mask).long().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


def gradient(trainer: TokenRewardTrainer, batches: list[list[EncodedPair]]) -> Tensor:
    """Gradient of one optimizer step over micro-batches, by the steps that `Trainer.train` takes."""
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = len(batches)
    collated, count = trainer.get_batch_samples(
        iter([trainer.data_collator(batch) for batch in batches]), len(batches), torch.device("cpu")
    )
    assert count == sum(map(len, batches))
    for batch in collated:
        trainer.training_step(trainer.model, batch, count)
    return torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("options", [{}, {"reward_level": "sequence"}, {"reduction": "mean", "unchanged_weight": 0.1}])
def test_gradient_accumulation_and_layout_do_not_change_the_step(
    packed: bool, options: dict[str, Any], model: TokenRewardModel, tmp_path: Path
) -> None:
    rows = pairs(12)
    whole = gradient(TokenRewardTrainer(model, config(tmp_path, **options)), [rows])
    trainer = TokenRewardTrainer(model, config(tmp_path, packed=packed, **options))
    cut = gradient(trainer, [rows[:6], rows[6:7], rows[7:]])  # unequal micro-batches, one of a single pair
    assert whole.norm() > 0.1
    torch.testing.assert_close(cut, whole, atol=1e-5 * float(whole.norm()), rtol=1e-4)


def test_train_takes_the_step_of_one_big_batch(model: TokenRewardModel, tmp_path: Path) -> None:
    """The same through `train()`: 10 pairs as one batch, and as three micro-batches of 4, 4 and 2."""
    start = {name: value.clone() for name, value in model.model.state_dict().items()}
    ends = []
    for batch_size, accumulation in ((10, 1), (4, 3)):
        model.model.load_state_dict(start)
        options = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
        options |= {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        trainer = TokenRewardTrainer(model, config(tmp_path, max_steps=1, **options), train_dataset=pairs(10))
        trainer.train()
        ends.append((losses(trainer), [value.clone() for value in model.model.state_dict().values()]))
    assert any(not torch.equal(old, new) for old, new in zip(start.values(), ends[0][1], strict=True))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    torch.testing.assert_close(ends[0][1], ends[1][1], atol=1e-6, rtol=1e-5)


def test_pairs_without_an_edit_count_in_the_mean_without_a_gradient(model: TokenRewardModel, tmp_path: Path) -> None:
    rows = pairs(6)
    trainer = TokenRewardTrainer(model, config(tmp_path), eval_dataset=[*rows, *map(unedited, rows[:2])])
    alone = gradient(trainer, [rows])
    diluted = gradient(trainer, [rows, [unedited(row) for row in rows]])
    torch.testing.assert_close(diluted, alone / 2, atol=1e-5 * float(alone.norm()), rtol=1e-4)
    metrics = trainer.evaluate()
    assert metrics["eval_pairs"] == 8
    assert metrics["eval_pairs_without_edits"] == 2
    edited_only = trainer.evaluate(rows)
    assert metrics["eval_pair_accuracy"] == edited_only["eval_pair_accuracy"]
    assert metrics["eval_margin"] == pytest.approx(edited_only["eval_margin"])


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_metrics_do_not_depend_on_the_batches(
    batch_size: int, packed: bool, model: TokenRewardModel, tmp_path: Path
) -> None:
    rows = pairs(13)
    for row in rows[::2]:
        row.original_errors = row.original_edits  # human spans, equal to the edits, on half of the rows
    options = {"packed": packed, "per_device_eval_batch_size": batch_size}
    metrics = TokenRewardTrainer(model, config(tmp_path, **options)).evaluate(rows)
    spans_alone = TokenRewardTrainer(model, config(tmp_path)).evaluate(rows[::2])
    reference = TokenRewardTrainer(model, config(tmp_path, per_device_eval_batch_size=13)).evaluate(rows)
    assert metrics["eval_pairs"] == 13
    for name in ("loss", "pair_accuracy", "margin", "edit_auc", "span_auc"):
        assert metrics[f"eval_{name}"] == pytest.approx(reference[f"eval_{name}"], abs=1e-5), name
    assert metrics["eval_span_auc"] == pytest.approx(spans_alone["eval_edit_auc"], abs=1e-5)


def test_sides_of_a_packed_batch_are_those_of_a_padded_one() -> None:
    rows = pairs(3)
    for row in rows[1:]:
        row.original_errors = row.original_edits
    padded, packed = PairCollator(0)(rows), PairCollator(0, packed=True)(rows)
    values = torch.arange(1.0, packed["input_ids"].numel() + 1)[None]
    padded_values = torch.zeros(padded["input_ids"].shape).masked_scatter(padded["attention_mask"].bool(), values[0])
    assert count_pairs(padded) == count_pairs(packed) == 3
    for one, other in zip(split_sides(padded_values, padded), split_sides(values, packed), strict=True):
        for name, left, right in zip(one._fields, one, other, strict=True):
            assert torch.equal(left, right), name


def test_checkpoints_resume_and_load_without_fgrl(model: TokenRewardModel, tmp_path: Path) -> None:
    start = {name: value.clone() for name, value in model.model.state_dict().items()}
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 4}
    straight = TokenRewardTrainer(model, config(tmp_path, **options), train_dataset=pairs(24))
    straight.train()
    expected = {name: value.clone() for name, value in model.model.state_dict().items()}
    model.model.load_state_dict(start)
    resumed = TokenRewardTrainer(model, config(tmp_path, **options), train_dataset=pairs(24))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    torch.testing.assert_close(dict(model.model.state_dict()), expected)
    resumed.save_model(str(tmp_path / "final"))
    assert not list(tmp_path.rglob("training_args.bin")), "a pickle, which only trust can open"
    plain = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "final").eval()
    ids = torch.arange(3, 12)[None]
    torch.testing.assert_close(plain(input_ids=ids).logits.squeeze(-1), resumed.reward_model.eval()(ids))


def test_best_checkpoint_is_loaded_at_the_end(model: TokenRewardModel, tmp_path: Path) -> None:
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 2, "learning_rate": 3e-2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "edit_auc", "greater_is_better": True}
    trainer = TokenRewardTrainer(
        model, config(tmp_path, **options, **best), train_dataset=pairs(64), eval_dataset=pairs(32, seed=1)
    )
    trainer.train()
    history = [entry["eval_edit_auc"] for entry in trainer.state.log_history if "eval_edit_auc" in entry]
    assert len(history) == 2
    assert not list(tmp_path.rglob("training_args.bin"))
    assert trainer.evaluate()["eval_edit_auc"] == pytest.approx(max(history))


@pytest.mark.parametrize("targets", ["all-linear", ["gate_proj", "up_proj", "down_proj"]], ids=["all-linear", "named"])
def test_lora_trains_adapters_and_the_head(targets: Any, tiny_causal_lm: Any, tmp_path: Path) -> None:
    """The AUC at the end was 0.88 to 0.98 over eight seeds, 0.94 on average with a standard deviation of 0.03."""
    peft = pytest.importorskip("peft")
    trainer = TokenRewardTrainer(
        TokenRewardModel.from_backbone(tiny_causal_lm),
        config(tmp_path, num_train_epochs=10, gradient_checkpointing=True, learning_rate=1e-2),
        train_dataset=pairs(96),
        eval_dataset=pairs(32, seed=1),
        peft_config=peft.LoraConfig(r=4, target_modules=targets),
    )
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trained)
    assert any("score.modules_to_save" in name for name in trained)
    trainer.train()
    assert trainer.evaluate()["eval_edit_auc"] > 0.8
    trainer.reward_model.save_pretrained(tmp_path / "merged")
    plain = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(190, 215)[None]
    rewards = trainer.reward_model.eval()(ids)
    torch.testing.assert_close(plain(input_ids=ids).logits.squeeze(-1), rewards, atol=1e-4, rtol=1e-3)


def test_predict_returns_rewards_and_labels_of_both_sides(model: TokenRewardModel, tmp_path: Path) -> None:
    rows = pairs(5)
    output = TokenRewardTrainer(model, config(tmp_path)).predict(rows)
    chosen, rejected = output.predictions
    assert chosen.shape == rejected.shape == output.label_ids[0].shape
    assert (output.label_ids[1] & 1).sum() == sum(len(row.original_ids) for row in rows)
    assert ((output.label_ids[1] & 2) != 0).sum() == sum(map(sum, (row.original_edits for row in rows)))
    assert output.metrics["test_pairs"] == 5


def write_rows(path: Path, count: int) -> Path:
    row = {"prompt": "where is the cat", "original": "teh cat sat on a matt", "edited": "the cat sat on a mat"}
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(count)), encoding="utf-8")
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_trains_from_names_and_files(streaming: bool, tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "pairs.jsonl", 12)
    with source.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "no response here"}\n')
    options = {"streaming": streaming, "max_steps": 5, "per_device_train_batch_size": 4, "on_error": "skip"}
    trainer = TokenRewardTrainer(
        str(tiny_checkpoint),
        config(tmp_path / "out", **options, model_init_kwargs={"dtype": "float32"}),
        train_dataset=str(source),
        eval_dataset=[{"question": "q", "rejected": "a caat", "chosen": "a cat"}],
    )
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert trainer.evaluate()["eval_pairs"] == 1


@pytest.mark.parametrize(("options", "seed"), [({}, 5), ({"data_seed": 0}, 0), ({"data_seed": 3}, 3)], ids=str)
def test_a_stream_is_shuffled_by_the_seed_of_the_data(
    options: dict[str, int], seed: int, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    args = config(tmp_path, streaming=True, max_steps=1, seed=5, **options)
    rows = [{"prompt": str(row), "original": "a", "edited": "b"} for row in range(20)]

    def order(dataset: Any) -> list[list[int]]:
        return [pair.prompt_ids for pair in dataset]

    encoded = encode_dataset(rows, tiny_tokenizer, args, 64, training=True)
    encoder = PairEncoder(tiny_tokenizer, max_length=64)
    assert order(encoded) == order(StreamingPairDataset(rows, encoder, shuffle_buffer=4096, seed=seed))
    assert order(encoded) != order(StreamingPairDataset(rows, encoder, shuffle_buffer=4096, seed=seed + 1))


def test_responses_are_cut_to_what_the_model_takes(tiny_tokenizer: Any, tmp_path: Path) -> None:
    config_gpt2 = transformers.GPT2Config(vocab_size=400, n_embd=16, n_layer=1, n_head=1, n_positions=16)
    model = TokenRewardModel.from_backbone(transformers.GPT2LMHeadModel(config_gpt2))
    rows = [{"prompt": "p", "original": "teh cat " * 40, "edited": "the cat " * 40}]
    trainer = TokenRewardTrainer(model, config(tmp_path), train_dataset=rows, processing_class=tiny_tokenizer)
    assert len(trainer.train_dataset[0].original_ids) == 16
    trainer.evaluate(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_level": "word"}, "reward_level is 'word'; it must be one of token, sequence"),
        ({"reduction": "max"}, "reduction is 'max'; it must be one of sum, mean"),
        ({"streaming": True}, "max_steps is -1; it must be positive with streaming"),
        ({"remove_unused_columns": True}, "remove_unused_columns is True; it must be False"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be"),
        ({"bf16_full_eval": True}, "bf16_full_eval is True; it must be False"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1; it must be 0.0"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy is 'group_by_length'; it must be"),
        ({"accelerator_config": {"dispatch_batches": True}}, "accelerator_config.dispatch_batches is True; it must be"),
        ({"accelerator_config": {"dispatch_batches": True, "split_batches": True}}, "dispatch_batches is True"),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}}, "has num_steps=4; it must be"),
    ],
)
def test_config_refuses(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_trainer_refuses_what_cannot_work(model: TokenRewardModel, tiny_tokenizer: Any, tmp_path: Path) -> None:
    row = {"prompt": "p", "original": "a", "edited": "b"}
    with pytest.raises(ValueError, match="processing_class is None; it must be a tokenizer"):
        TokenRewardTrainer(model, config(tmp_path), train_dataset=[row])
    with pytest.raises(ValueError, match="train_dataset has no usable pair"):
        TokenRewardTrainer(model, config(tmp_path), train_dataset=[], processing_class=tiny_tokenizer)
    small = TokenRewardModel.from_backbone(
        transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=1))
    )
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens; it must have at most the 100 of the model"):
        TokenRewardTrainer(small, config(tmp_path), processing_class=tiny_tokenizer)
    bloom = transformers.BloomConfig(vocab_size=400, hidden_size=16, n_layer=1, n_head=1)
    alibi = TokenRewardModel.from_backbone(transformers.BloomForCausalLM(bloom))
    with pytest.raises(ValueError, match="does not keep packed sequences apart"):
        TokenRewardTrainer(alibi, config(tmp_path, packed=True))


@pytest.mark.skipif(not HUMAN_EDITS.exists(), reason="the human edits are not here")
def test_trains_on_real_human_edits(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    with HUMAN_EDITS.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(24), strict=False)]
    trainer = TokenRewardTrainer(
        TokenRewardModel.from_backbone(tiny_causal_lm),
        config(tmp_path, num_train_epochs=12, per_device_train_batch_size=8, max_length=192, reduction="mean"),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tiny_tokenizer,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_pairs"] == 24
    assert after["eval_loss"] < 0.7 * before["eval_loss"]
    assert after["eval_edit_auc"] > 0.6
    assert 0 <= after["eval_span_auc"] <= 1
