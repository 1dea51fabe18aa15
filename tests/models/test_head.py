"""Hidden states and head give the logits of the model itself, whatever its family does to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fgrl.models import hidden_states_and_head  # noqa: E402
from fgrl.ops import linear_logprobs  # noqa: E402

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Mistral": {},
    "Gemma2": {"final_logit_softcapping": 3.0},  # small, so that it bends these logits
    "Gemma3Text": {"final_logit_softcapping": 3.0},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Phi": {"num_key_value_heads": 2},  # its head has a bias
    "GPT2": {},  # tied head, absolute positions
}


def build(family: str) -> Any:
    torch.manual_seed(0)
    if family == "GPT2":
        config = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    else:
        config = getattr(transformers, f"{family}Config")(**{**SMALL, **FAMILIES[family]})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("lm_head.bias"):
            torch.nn.init.normal_(parameter)
    embeddings = model.get_output_embeddings().weight
    torch.nn.init.normal_(embeddings, std=0.5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_logits_are_the_models_own(family: str, padding: str) -> None:
    model = build(family)
    ids = torch.randint(1, 96, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    if padding == "right":
        mask = mask.flip(1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        states = hidden_states_and_head(model, ids, mask)
        logits = torch.nn.functional.linear(states.hidden, states.weight, states.bias)
        if states.softcap is not None:
            logits = states.softcap * torch.tanh(logits / states.softcap)
        logprobs = linear_logprobs(
            states.hidden[:, :-1],
            states.weight,
            ids[:, 1:],
            bias=states.bias,
            softcap=states.softcap,
            mask=mask[:, :-1],
        )
    assert expected[mask.bool()].std() > 0.1
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-4)
    wanted = expected.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0] * mask[:, :-1]
    torch.testing.assert_close(logprobs, wanted, atol=1e-5, rtol=1e-4)


def test_adapters_are_seen_through() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        build("Llama"), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    ids = torch.randint(1, 96, (1, 5))
    with torch.no_grad():
        states = hidden_states_and_head(model, ids)
        torch.testing.assert_close(states.hidden @ states.weight.T, model(ids).logits)
        with model.disable_adapter():
            without = hidden_states_and_head(model, ids)
    assert not torch.allclose(states.hidden, without.hidden)


def with_lora(dropout: float = 0.0, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["lm_head"], init_lora_weights=False, lora_dropout=dropout, **options
    )
    return peft.get_peft_model(build("Llama"), config)


def test_lora_on_the_head_is_merged_with_its_gradient() -> None:
    model, ids = with_lora(), torch.randint(1, 96, (1, 5))
    model.add_adapter("second", model.peft_config["default"])
    for adapters in (["default"], ["default", "second"]):
        model.base_model.set_adapter(adapters)
        grads = []
        for logits in (model(ids).logits, torch.nn.functional.linear(*hidden_states_and_head(model, ids)[:3])):
            loss = logits.square().sum()
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            grads.append([logits, *torch.autograd.grad(loss, trained)])
        assert len(grads[0]) == 1 + 2 * len(adapters)
        for ours, expected in zip(*grads, strict=True):
            assert (ours - expected).norm() <= 1e-5 * expected.norm()
    with model.disable_adapter():
        states = hidden_states_and_head(model, ids)
        torch.testing.assert_close(states.hidden @ states.weight.T, model(ids).logits)
    model.merge_adapter()
    states = hidden_states_and_head(model, ids)
    torch.testing.assert_close(states.hidden @ states.weight.T, model(ids).logits)


def test_a_head_that_peft_trains_whole() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model, ids = peft.get_peft_model(build("Llama"), config), torch.randint(1, 96, (1, 5))
    with torch.no_grad():
        for parameter in model.base_model.model.lm_head.modules_to_save.parameters():
            parameter.mul_(2)
        states = hidden_states_and_head(model, ids)
        torch.testing.assert_close(states.hidden @ states.weight.T, model(ids).logits)
        with model.disable_adapter():
            states = hidden_states_and_head(model, ids)
            torch.testing.assert_close(states.hidden @ states.weight.T, model(ids).logits)


def test_adapters_that_are_no_merged_weight_are_refused() -> None:
    ids = torch.ones(1, 3, dtype=torch.long)
    dropping = with_lora(dropout=0.5)
    hidden_states_and_head(dropping.eval(), ids)
    with pytest.raises(ValueError, match=r"lora_dropout 0\.5 while training"):
        hidden_states_and_head(dropping.train(), ids)
    with pytest.raises(ValueError, match="DoRA"):
        hidden_states_and_head(with_lora(use_dora=True), ids)
    with pytest.raises(ValueError, match="has a bias"):
        hidden_states_and_head(with_lora(lora_bias=True), ids)
    peft = pytest.importorskip("peft")
    other = peft.get_peft_model(build("Llama"), peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[]))
    with pytest.raises(ValueError, match="adapters that are not LoRA"):
        hidden_states_and_head(other, ids)
