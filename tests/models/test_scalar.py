"""`TokenRewardModel` and `ValueModel` on every kind of backbone: layout, padding, packing, dtype, PEFT, checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from fgrl.models import TokenHead, TokenRewardModel, ValueModel  # noqa: E402
from fgrl.models.packing import check_packing  # noqa: E402

VOCAB = 128
LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# GPT-2: head called `classifier`, absolute positions, dropout 0.1. Mistral, Gemma 2: a sliding window shorter than the
# sequences. Gemma 2: soft-capped attention, no SDPA. GPT-NeoX: another base_model_prefix.
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA_LIKE),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA_LIKE),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA_LIKE, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**LLAMA_LIKE, sliding_window=4),
    "gemma": lambda: transformers.GemmaConfig(**LLAMA_LIKE, head_dim=16),
    "gemma2": lambda: transformers.Gemma2Config(**LLAMA_LIKE, head_dim=16, sliding_window=4),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **{key: value for key, value in LLAMA_LIKE.items() if key != "num_key_value_heads"}
    ),
}
LENGTHS = (7, 11, 1)  # 1: a packed sequence that ends where it starts

every_backbone = pytest.mark.parametrize("name", list(CONFIGS))


def causal_lm(name: str) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()


def reward_model(name: str) -> TokenRewardModel:
    model = TokenRewardModel.from_backbone(causal_lm(name))
    for module in model.modules():
        if isinstance(module, TokenHead):
            torch.nn.init.normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.constant_(module.bias, 0.3)
    return model


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in LENGTHS]


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows)) + 2
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, place], mask[index, place] = row, 1
    return ids, mask


def packed(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat(rows)[None], torch.cat([torch.arange(len(row)) for row in rows])[None]


@every_backbone
@pytest.mark.parametrize("layout", ["right", "left", "packed"])
@torch.no_grad()
def test_rewards_do_not_depend_on_the_layout_of_the_batch(name: str, layout: str) -> None:
    model = reward_model(name)
    rows = sequences()
    alone = [model(row[None])[0] for row in rows]
    if layout == "packed":
        ids, positions = packed(rows)
        together = model(ids, position_ids=positions)[0]
    else:
        ids, mask = padded(rows, layout)
        rewards = model(ids, mask)
        assert rewards.shape == ids.shape
        assert (rewards[mask == 0] == 0).all()
        together = rewards[mask == 1]
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-4)


@every_backbone
@torch.no_grad()
def test_reward_at_a_token_reads_that_token_and_none_after_it(name: str) -> None:
    model = reward_model(name)
    ids = sequences()[1][None]
    before = model(ids)[0]
    ids[0, 5] = (ids[0, 5] - 2) % (VOCAB - 3) + 3
    after = model(ids)[0]
    torch.testing.assert_close(after[:5], before[:5])
    assert (after[5] - before[5]).abs() > 1e-4


@every_backbone
@torch.no_grad()
def test_plain_transformers_loads_a_saved_model_with_the_same_outputs(name: str, tmp_path: Path) -> None:
    model = reward_model(name)
    ids, mask = padded(sequences(), "right")
    model.save_pretrained(tmp_path)
    plain = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    assert plain.config.num_labels == 1
    logits = plain(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
    torch.testing.assert_close(model(ids, mask)[mask == 1], logits[mask == 1], atol=2e-6, rtol=1e-5)
    again = TokenRewardModel.from_pretrained(tmp_path)
    assert again.head_loaded
    torch.testing.assert_close(again(ids, mask), model(ids, mask), atol=2e-6, rtol=1e-5)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors"}


@torch.no_grad()
def test_checkpoint_loads_in_a_process_that_cannot_import_fgrl(tmp_path: Path) -> None:
    model = reward_model("qwen2")
    ids, mask = padded(sequences(), "right")
    model.save_pretrained(tmp_path / "model")
    torch.save((ids, mask), tmp_path / "inputs.pt")
    script = f"""
import sys, torch
sys.modules["fgrl"] = None  # makes `import fgrl` raise
from transformers import AutoModelForTokenClassification
ids, mask = torch.load({str(tmp_path / "inputs.pt")!r})
model = AutoModelForTokenClassification.from_pretrained({str(tmp_path / "model")!r}).eval()
with torch.no_grad():
    torch.save(model(input_ids=ids, attention_mask=mask).logits.squeeze(-1), {str(tmp_path / "outputs.pt")!r})
assert not any(name.startswith("fgrl.") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    outputs = torch.load(tmp_path / "outputs.pt")
    torch.testing.assert_close(outputs[mask == 1], model(ids, mask)[mask == 1], atol=2e-6, rtol=1e-5)


@every_backbone
def test_training_mode_gives_the_scalars_of_evaluation(name: str) -> None:
    model = reward_model(name)
    ids, mask = padded(sequences(), "right")
    expected = model.eval()(ids, mask)
    torch.testing.assert_close(model.train()(ids, mask), expected, atol=0, rtol=0)


def test_dropout_is_there_when_asked_for(tmp_path: Path) -> None:
    reward_model("gpt2").save_pretrained(tmp_path)
    ids = sequences()[1][None]
    for dropout, moves in ((0.0, False), (0.5, True)):
        model = TokenRewardModel.from_pretrained(tmp_path, dropout=dropout).train()
        assert (not torch.equal(model(ids), model(ids))) is moves


def test_causal_checkpoint_keeps_its_backbone_and_gets_a_head_of_zeros(tmp_path: Path) -> None:
    lm = causal_lm("llama")
    lm.save_pretrained(tmp_path)
    model = TokenRewardModel.from_pretrained(tmp_path)
    assert not model.head_loaded
    assert (model(sequences()[0][None]) == 0).all()
    expected = dict(lm.model.named_parameters())
    loaded = dict(model.model.model.named_parameters())
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


@pytest.mark.parametrize("share", [False, True])
def test_from_backbone_copies_or_shares_the_weights(share: bool) -> None:
    lm = causal_lm("gpt2")
    model = ValueModel.from_backbone(lm, share=share)
    assert (model.model.transformer is lm.transformer) is share
    with torch.no_grad():
        lm.transformer.wte.weight.add_(1.0)
    assert torch.equal(model.model.transformer.wte.weight, lm.transformer.wte.weight) is share
    assert lm.transformer.drop.p == 0.1, "the policy's own dropout is nobody's to change"


def test_from_backbone_takes_another_token_model() -> None:
    rewards = reward_model("qwen3")
    values = ValueModel.from_backbone(rewards)
    ids = sequences()[0][None]
    assert (values(ids) == 0).all()
    assert not (rewards(ids) == 0).any()
    torch.testing.assert_close(values.model.model(ids)[0], rewards.model.model(ids)[0])


def test_backbone_without_a_class_gets_one_sentence(tmp_path: Path) -> None:
    lm = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**LLAMA_LIKE, head_dim=16))
    lm.save_pretrained(tmp_path)
    for build in (lambda: TokenRewardModel.from_backbone(lm), lambda: TokenRewardModel.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=r"model_type is 'gemma3_text'; it must be one for which") as error:
            build()
        assert len(str(error.value)) < 250


def test_checkpoint_with_other_labels_is_refused(tmp_path: Path) -> None:
    config = CONFIGS["llama"]()
    config.num_labels = 3
    transformers.LlamaForTokenClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="with 3 labels; it must have 1"):
        TokenRewardModel.from_pretrained(tmp_path)


def test_model_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model is a LlamaForCausalLM; .*from_backbone"):
        TokenRewardModel(causal_lm("llama"))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    lm = causal_lm("llama")
    lm.config.save_pretrained(tmp_path)
    torch.save(lm.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        TokenRewardModel.from_pretrained(tmp_path)


def test_bfloat16_backbone_gives_float32_rewards_near_the_float32_ones(tmp_path: Path) -> None:
    exact = reward_model("llama")
    exact.save_pretrained(tmp_path)
    model = TokenRewardModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    ids, mask = padded(sequences(), "right")
    rewards = model(ids, mask)
    assert rewards.dtype == torch.float32
    assert not torch.equal(rewards, rewards.bfloat16().float()), "rewards must not be rounded to bfloat16"
    torch.testing.assert_close(rewards, exact(ids, mask), atol=0.15, rtol=0.1)
    rewards.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def gradients(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(ids, attention_mask=mask).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    model = reward_model(name).train()
    ids, mask = padded(sequences(), "right")
    expected = gradients(model, ids, mask)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    actual = gradients(model, ids, mask)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, msg=key)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_trains_adapters_and_saves_a_merged_plain_checkpoint(checkpointing: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = reward_model("llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="TOKEN_CLS", init_lora_weights=False)
    adapted = TokenRewardModel(peft.get_peft_model(model.model, config)).train()
    if checkpointing:
        adapted.gradient_checkpointing_enable()
    ids, mask = padded(sequences(), "right")
    trained = gradients(adapted, ids, mask)
    assert trained
    assert all("lora_" in key or "score.modules_to_save" in key for key in trained)
    assert any("score.modules_to_save" in key for key in trained)
    rewards = adapted(ids, mask)
    adapted.save_pretrained(tmp_path)
    plain = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    logits = plain(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
    torch.testing.assert_close(logits[mask == 1], rewards[mask == 1], atol=1e-5, rtol=1e-4)
    assert gradients(adapted, ids, mask).keys() == trained.keys(), "saving must leave the adapters in place"


def test_peft_wraps_the_whole_module_too() -> None:
    peft = pytest.importorskip("peft")
    ids, mask = padded(sequences(), "right")
    model = reward_model("gpt2")
    expected = model(ids, mask)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn"]))
    torch.testing.assert_close(wrapped(ids, attention_mask=mask), expected)
    assert any("lora_" in key for key in gradients(wrapped, ids, mask))


@every_backbone
def test_packing_check_accepts_what_keeps_sequences_apart(name: str) -> None:
    check_packing(reward_model(name).model)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            lambda: transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2), id="bloom"
        ),
        pytest.param(
            lambda: transformers.FalconConfig(
                vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2
            ),
            id="falcon",
        ),
    ],
)
def test_packing_check_refuses_what_does_not(config: Any) -> None:
    model = transformers.AutoModelForTokenClassification.from_config(config())
    with pytest.raises(ValueError, match="does not keep packed sequences apart"):
        check_packing(model)
