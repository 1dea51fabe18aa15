"""Every family of transformers, tiny: padded, packed or alone, it gives what plain transformers does, or is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from tiny_models import randomise, shrink  # noqa: E402

from fgrl.models import TokenRewardModel, hidden_states_and_head  # noqa: E402
from fgrl.models.head import OwnLogits  # noqa: E402

CAUSAL = {config.__name__: config for config in transformers.MODEL_FOR_CAUSAL_LM_MAPPING}
TOKEN = {config.__name__: config for config in transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING}
# Families whose tiny version needs knowledge of its own; each is in the mapping, so that none is forgotten.
NOT_BUILT = {
    "BltConfig": "four configurations in one, without layers of its own",
    "BrosConfig": "wants boxes with the text",
    "CohereCompassTextConfig": "rotary settings a layer type",
    "DbrxConfig": "its attention has a configuration without rotary settings",
    "Dots3NoteConfig": "settings of single layers beyond the second",
    "Dots3NoteTextConfig": "tables of 38 million parameters",
    "EsmConfig": "its default has no mask token",
    "Gemma3nConfig": "needs timm",
    "Gemma4AssistantConfig": "reads the cache of another model",
    "Gemma4UnifiedAssistantConfig": "reads the cache of another model",
    "LayoutLMv2Config": "needs detectron2",
    "LayoutLMv3Config": "embeddings of boxes of a size of their own",
    "LiltConfig": "embeddings of boxes of a size of their own",
    "Mistral4Config": "sizes of latent attention that must fit together",
    "MusicgenConfig": "a configuration of three models",
    "MusicgenMelodyConfig": "a configuration of three models",
    "Qwen4ExpConfig": "its indexer has no defaults",
    "Qwen4ExpTextConfig": "its indexer has no defaults",
    "ZambaConfig": "shares blocks that two layers have not",
    "xLSTMConfig": "sizes of states that must fit together",
}
# Logits that no hidden state, weight and soft-cap give.
REFUSED = {"ProphetNetConfig"}
# No head with one output on a backbone that runs on three tokens.
NO_SCALARS = {"CanineConfig", "FunnelConfig", "T5GemmaConfig", "T5Gemma2Config"}
# Families that a padded neighbour changes: positions that cannot be set, states that run through padding, convolutions.
RIGHT = {
    "ConvBertConfig",
    "CpmAntConfig",
    "FNetConfig",
    "MobileBertConfig",
    "NystromformerConfig",
    "YosoConfig",
}
LEFT = {
    "BartConfig",
    "BigBirdPegasusConfig",
    "BlenderbotConfig",
    "BlenderbotSmallConfig",
    "DeepseekV4Config",
    "MBartConfig",
    "MarianConfig",
    "MvpConfig",
    "PLBartConfig",
    "PegasusConfig",
    "RecurrentGemmaConfig",
    "RoFormerConfig",
    "RwkvConfig",
    "TrOCRConfig",
    "WhisperConfig",
} | RIGHT
SENTENCE = r"^(model|attention_mask|position_ids) (is|has) .*; it must "
LENGTHS = (7, 11)

pytestmark = pytest.mark.slow


def rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(10, 90, (length,), generator=generator) for length in LENGTHS]


def layouts(run: Callable[..., Tensor], layout: str) -> list[Tensor]:
    """What `run(input_ids, attention_mask, position_ids)` gives for each row."""
    if layout == "alone":
        return [run(row[None])[0] for row in rows()]
    if layout == "packed":
        positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
        return list(run(torch.cat(rows())[None], None, positions)[0].split(LENGTHS))
    width = max(LENGTHS) + 2
    ids, mask = torch.full((2, width), 4), torch.zeros(2, width, dtype=torch.long)  # 4: not the model's padding
    spans = [slice(n) if layout == "right" else slice(width - n, width) for n in LENGTHS]
    for index, (row, place) in enumerate(zip(rows(), spans, strict=True)):
        ids[index, place], mask[index, place] = row, 1
    outputs = run(ids, mask)
    return [outputs[index, place] for index, place in enumerate(spans)]


def build(config_class: Any, auto: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    return randomise(auto.from_config(shrink(config_class, **settings)))


def check(run: Callable[..., Tensor], expected: list[Tensor], name: str) -> None:
    for layout, refused in (("alone", set()), ("right", RIGHT), ("left", LEFT), ("packed", None)):
        sentence = ""
        try:
            outputs = layouts(run, layout)
        except ValueError as error:
            sentence = str(error)
        if refused is not None:
            assert bool(sentence) is (name in refused), f"{layout}: {sentence or 'is right; take it off the list'}"
        if sentence:
            assert re.match(SENTENCE, sentence)
            continue
        for ours, plain in zip(outputs, expected, strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-4 * float(plain.abs().max()), rtol=1e-4, msg=layout)


def is_built(name: str) -> None:
    if name in NOT_BUILT:
        pytest.skip(NOT_BUILT[name])


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_logits_of_causal_lms(name: str) -> None:
    is_built(name)
    decoder = {"is_decoder": True} if hasattr(CAUSAL[name](), "is_decoder") else {}
    model = build(CAUSAL[name], transformers.AutoModelForCausalLM, **decoder)
    expected = [model(input_ids=row[None]).logits[0] for row in rows()]
    if name in REFUSED:
        with pytest.raises(
            ValueError, match=rf"^model is a {type(model).__name__}, whose logits are not .*; it must be"
        ):
            hidden_states_and_head(model, rows()[0][None])
        own = hidden_states_and_head(model, rows()[0][None], fallback="logits")
        assert isinstance(own, OwnLogits)
        torch.testing.assert_close(own.logits[0], expected[0])
        return

    def logits(*inputs: Tensor | None) -> Tensor:
        states = hidden_states_and_head(model, *inputs)
        linear = torch.nn.functional.linear(states.hidden, states.weight, states.bias)
        return linear if states.softcap is None else states.softcap * torch.tanh(linear / states.softcap)

    random, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    check(logits, expected, name)
    assert torch.equal(torch.get_rng_state(), random) or name == "ReformerConfig"  # hashes at random in every run
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("name", TOKEN)
@torch.no_grad()
def test_rewards_of_token_classifiers(name: str) -> None:
    is_built(name)
    plain = build(TOKEN[name], transformers.AutoModelForTokenClassification, num_labels=1)
    expected = [plain(input_ids=row[None]).logits[0, :, 0] for row in rows()]
    if name in NO_SCALARS:
        with pytest.raises(ValueError, match=SENTENCE):
            TokenRewardModel(plain)(rows()[0][None])
        return
    check(TokenRewardModel(plain), expected, name)
