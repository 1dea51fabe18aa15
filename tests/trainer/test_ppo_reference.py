"""The reference of the KL: what it is, that no update reaches it, and that a policy which cannot learn is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from reward_task import config as reward_config  # noqa: E402
from reward_task import pairs  # noqa: E402

from fgrl import TokenRewardModel, ValueModel  # noqa: E402
from fgrl.trainer import TokenRewardTrainer  # noqa: E402

TRAIN = {"learning_rate": 1e-2, "max_steps": 4, "lr_scheduler_type": "constant"}


def lora(**options: Any) -> Any:
    defaults = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    return peft.LoraConfig(**{**defaults, **options})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 13)[None]).logits


def peft_model(base: Any) -> Any:
    return peft.get_peft_model(base, lora())


def saved_and_loaded(base: Any, folder: Path, **options: Any) -> Any:
    peft_model(copy.deepcopy(base)).save_pretrained(folder)
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), folder, **options)


def two_adapters(base: Any) -> Any:
    model = peft_model(base)
    model.add_adapter("second", lora(r=2))
    model.set_adapter("second")
    return model


def both_adapters_active(base: Any) -> Any:
    model = two_adapters(base)
    model.base_model.set_adapter(["default", "second"])
    return model


def injected(base: Any) -> Any:
    return peft.inject_adapter_in_model(lora(), base)


def added(base: Any) -> Any:
    base.add_adapter(lora())
    return base


def with_saved_modules(base: Any) -> Any:
    model = peft.get_peft_model(base, lora(modules_to_save=["lm_head"]))
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
    return model


def ia3(base: Any) -> Any:
    config = peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.mul_(1.5)
    return model


def partly_frozen(base: Any) -> Any:
    base.model.embed_tokens.requires_grad_(False)
    base.model.layers[0].requires_grad_(False)
    return base


ADAPTED = [peft_model, two_adapters, both_adapters_active, injected, added, with_saved_modules, ia3]


def ids(value: Any) -> str:
    return value.__name__ if callable(value) else str(value)


@pytest.mark.parametrize("make", [copy.deepcopy, partly_frozen, *ADAPTED], ids=ids)
def test_the_reference_is_the_policy_as_it_starts_and_stays(
    make_trainer: Any, rollout_of: Any, tiny_causal_lm: Any, make: Any
) -> None:
    policy = make(copy.deepcopy(tiny_causal_lm))
    start = logits(policy)
    trainer = make_trainer(TRAIN, model=policy, value_model=ValueModel.from_backbone(tiny_causal_lm))
    assert abs(rollout_of(trainer)[1]["kl_per_sequence"]) < 1e-5
    trainer.train()
    assert torch.equal(logits(trainer._maker.reference), start)
    assert not torch.equal(logits(trainer.policy), start)
    assert abs(rollout_of(trainer)[1]["kl_per_sequence"]) > 1e-5


@pytest.mark.parametrize("make", ADAPTED, ids=ids)
def test_the_reference_can_be_the_base_without_adapters(
    make_trainer: Any, rollout_of: Any, tiny_causal_lm: Any, make: Any
) -> None:
    policy = make(copy.deepcopy(tiny_causal_lm))
    assert not torch.allclose(logits(policy), logits(tiny_causal_lm), atol=1e-4)
    value_model = ValueModel.from_backbone(tiny_causal_lm)
    trainer = make_trainer({**TRAIN, "reference": "base"}, model=policy, value_model=value_model)
    assert abs(rollout_of(trainer)[1]["kl_per_sequence"]) > 1e-5
    trainer.train()
    torch.testing.assert_close(logits(trainer._maker.reference), logits(tiny_causal_lm))
    assert any(parameter.requires_grad for parameter in trainer.policy.parameters())


@pytest.mark.parametrize("reference", ["start", "base"])
def test_new_adapters_start_at_their_base(
    make_trainer: Any, rollout_of: Any, tiny_causal_lm: Any, reference: str
) -> None:
    trainer = make_trainer({**TRAIN, "reference": reference}, peft_config=lora(init_lora_weights=True))
    trainer.train()
    torch.testing.assert_close(logits(trainer._maker.reference), logits(tiny_causal_lm))
    assert abs(rollout_of(trainer)[1]["kl_per_sequence"]) > 1e-5


def test_the_reference_of_adapters_shares_the_memory_of_their_base(make_trainer: Any) -> None:
    trainer = make_trainer(peft_config=lora())
    own = {id(parameter) for parameter in trainer._maker.reference.parameters()}
    own -= {id(parameter) for parameter in trainer.policy.parameters()}
    assert len(own) == 8  # A and B, of q_proj and v_proj, in two layers
    trainer.policy.requires_grad_(True)
    with pytest.raises(ValueError, match="the reference shares weights with the policy"):
        trainer.train()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adapters_that_change_their_base_have_no_base_to_refer_to(
    make_trainer: Any, rollout_of: Any, tiny_causal_lm: Any, init: str
) -> None:
    value_model = ValueModel.from_backbone(tiny_causal_lm)
    with pytest.raises(ValueError, match=r"reference is 'base' and .*; it must be 'start'"):
        make_trainer({"reference": "base"}, peft_config=lora(init_lora_weights=init))
    changed = peft.get_peft_model(copy.deepcopy(tiny_causal_lm), lora(init_lora_weights=init))
    with pytest.raises(ValueError, match=r"reference is 'base' and .*; it must be 'start'"):
        make_trainer({"reference": "base"}, model=changed, value_model=value_model)
    trainer = make_trainer(peft_config=lora(init_lora_weights=init))
    torch.testing.assert_close(logits(trainer._maker.reference), logits(tiny_causal_lm), atol=1e-4, rtol=1e-4)


def test_a_base_whose_biases_are_trained_is_refused(make_trainer: Any, tiny_causal_lm: Any) -> None:
    with pytest.raises(ValueError, match="the adapters train biases of the base"):
        make_trainer(
            {"reference": "base"},
            model=peft.get_peft_model(copy.deepcopy(tiny_causal_lm), lora(bias="all")),
            value_model=ValueModel.from_backbone(tiny_causal_lm),
        )


@pytest.mark.parametrize("config", [{"reference": "base"}, {"reference": "first"}], ids=ids)
def test_reference_names_what_it_can_be(make_trainer: Any, config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"reference is '\w+'.*; it must be 'start'"):
        make_trainer(config)


def assigned(policy: Any) -> Any:
    other = copy.deepcopy(policy)
    other.load_state_dict(policy.state_dict(), assign=True)
    return other


def one_view(policy: Any) -> Any:
    other = copy.deepcopy(policy)
    other.model.norm.weight = torch.nn.Parameter(policy.model.norm.weight.detach()[:])
    return other


@pytest.mark.parametrize("share", [lambda policy: policy, assigned, one_view], ids=["the policy", "assigned", "a view"])
def test_a_reference_that_is_the_policy_is_refused(make_trainer: Any, tiny_causal_lm: Any, share: Any) -> None:
    policy = copy.deepcopy(tiny_causal_lm)
    make_trainer(model=policy, ref_model=copy.deepcopy(policy))
    with pytest.raises(ValueError, match="ref_model shares weights"):
        make_trainer(model=policy, ref_model=share(policy))


def test_a_reference_may_share_what_is_frozen(make_trainer: Any, rollout_of: Any, tiny_causal_lm: Any) -> None:
    policy = copy.deepcopy(tiny_causal_lm)
    trainer = make_trainer(TRAIN, model=policy, ref_model=assigned(policy), peft_config=lora())
    trainer.train()
    assert abs(rollout_of(trainer)[1]["kl_per_sequence"]) > 1e-5
    policy = copy.deepcopy(tiny_causal_lm)
    with pytest.raises(ValueError, match="ref_model shares weights"):
        make_trainer(model=policy, ref_model=policy, peft_config=lora())  # which the adapters are put into


def test_the_base_inside_the_policy_is_no_reference(make_trainer: Any, tiny_causal_lm: Any) -> None:
    base = copy.deepcopy(tiny_causal_lm)
    policy = peft_model(base)
    with pytest.raises(ValueError, match="ref_model shares weights"):
        make_trainer(model=policy, ref_model=base, value_model=ValueModel.from_backbone(tiny_causal_lm))


def frozen(base: Any, folder: Path) -> Any:
    return base.requires_grad_(False)


def loaded_for_inference(base: Any, folder: Path) -> Any:
    return saved_and_loaded(base, folder)


def loaded_by_transformers(base: Any, folder: Path) -> Any:
    base.save_pretrained(folder / "base")
    peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder / "base")).save_pretrained(folder / "adapter")
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "adapter")


def merged_and_unloaded(base: Any, folder: Path) -> Any:
    return peft_model(base).merge_and_unload()


def disabled(base: Any, folder: Path) -> Any:
    model = peft_model(base)
    model.base_model.disable_adapter_layers()
    return model


def merged(base: Any, folder: Path) -> Any:
    model = peft_model(base)
    model.merge_adapter()
    return model


def soft_prompt(base: Any, folder: Path) -> Any:
    return peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def prefix(base: Any, folder: Path) -> Any:
    return peft.get_peft_model(base, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def in_a_submodule(base: Any, folder: Path) -> Any:
    peft.inject_adapter_in_model(lora(), base.model)
    return base


def in_data_parallel(base: Any, folder: Path) -> Any:
    return torch.nn.DataParallel(base)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (frozen, r"no trainable parameters; it must have some: call requires_grad_"),
        (loaded_for_inference, "no trainable parameters; .* is_trainable=True"),
        (loaded_by_transformers, "no trainable parameters; .* is_trainable=True"),
        (merged_and_unloaded, "no trainable parameters"),
        (disabled, "no trainable parameters"),
        (merged, "merged into its weights"),
        (soft_prompt, "soft prompts"),
        (prefix, "soft prompts"),
        (in_a_submodule, "adapters inside a submodule"),
        (in_data_parallel, "is a DataParallel; it must be the model inside it"),
    ],
    ids=ids,
)
def test_a_policy_that_cannot_learn_is_refused(
    make_trainer: Any, tiny_causal_lm: Any, make: Any, message: str, tmp_path: Path
) -> None:
    policy = make(copy.deepcopy(tiny_causal_lm), tmp_path)
    with pytest.raises(ValueError, match=f"model .*{message}"):
        make_trainer(model=policy, value_model=ValueModel.from_backbone(tiny_causal_lm))


def test_a_trainable_adapter_that_is_not_the_active_one_is_refused(make_trainer: Any, tiny_causal_lm: Any) -> None:
    policy = two_adapters(copy.deepcopy(tiny_causal_lm))
    for name, parameter in policy.named_parameters():
        parameter.requires_grad = ".default." in name
    trainer = make_trainer(model=policy, value_model=ValueModel.from_backbone(tiny_causal_lm))
    with pytest.raises(ValueError, match="model has trainable parameters, but none that its output depends on"):
        trainer.train()


def test_adapters_loaded_to_be_trained_are(make_trainer: Any, tiny_causal_lm: Any, tmp_path: Path) -> None:
    policy = saved_and_loaded(tiny_causal_lm, tmp_path / "adapter", is_trainable=True)
    before = logits(policy)
    make_trainer(TRAIN, model=policy, value_model=ValueModel.from_backbone(tiny_causal_lm)).train()
    assert not torch.equal(logits(policy), before)


@pytest.mark.parametrize("make", [peft_model, two_adapters, injected, added, with_saved_modules], ids=ids)
def test_checkpoints_of_adapters_resume(make_trainer: Any, tiny_causal_lm: Any, make: Any, tmp_path: Path) -> None:
    config = {**TRAIN, "save_strategy": "steps", "save_steps": 2}
    ends = []
    for resume in (None, str(tmp_path / "out" / "checkpoint-2")):
        torch.manual_seed(0)
        policy = make(copy.deepcopy(tiny_causal_lm))
        trainer = make_trainer(config, model=policy, value_model=ValueModel.from_backbone(tiny_causal_lm))
        trainer.train(resume_from_checkpoint=resume)
        ends.append(logits(trainer.policy))
    torch.testing.assert_close(*ends)
    folder = tmp_path / "out" / "checkpoint-4"
    if make is two_adapters:
        folder = folder / "second"
    reloaded = peft.PeftModel.from_pretrained(copy.deepcopy(tiny_causal_lm), folder)
    if make is not two_adapters:
        torch.testing.assert_close(logits(reloaded), ends[1])


@pytest.mark.parametrize("which", ["model", "value_model"])
def test_adapters_and_a_peft_config_are_one_too_many(make_trainer: Any, tiny_causal_lm: Any, which: str) -> None:
    value = ValueModel.from_backbone(tiny_causal_lm)
    adapted = {
        "model": lambda: peft_model(copy.deepcopy(tiny_causal_lm)),
        "value_model": lambda: ValueModel(peft.get_peft_model(value.model, lora(task_type="TOKEN_CLS"))),
    }[which]()
    with pytest.raises(ValueError, match=f"{which} has adapters and peft_config is given"):
        make_trainer(**{which: adapted}, peft_config=lora())


def test_a_value_model_that_cannot_learn_is_refused(make_trainer: Any, tiny_causal_lm: Any) -> None:
    value = ValueModel.from_backbone(tiny_causal_lm)
    value.requires_grad_(False)
    with pytest.raises(ValueError, match="value_model has no trainable parameters"):
        make_trainer(value_model=value)
    value = ValueModel.from_backbone(tiny_causal_lm)
    peft.inject_adapter_in_model(lora(), value.model)
    with pytest.raises(ValueError, match="value_model has adapters but is no PeftModel"):
        make_trainer(value_model=value)


def test_a_value_model_on_the_policys_own_trunk_trains_it_once(
    make_trainer: Any, rollout_of: Any, tiny_causal_lm: Any
) -> None:
    policy = copy.deepcopy(tiny_causal_lm)
    value_model = ValueModel.from_backbone(policy, share=True)
    trainer = make_trainer({**TRAIN, "value_learning_rate": 5e-2}, model=policy, value_model=value_model)
    trainer.train()
    assert abs(rollout_of(trainer)[1]["kl_per_sequence"]) > 1e-5
    rates = {id(parameter): group["lr"] for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert {rates[id(parameter)] for parameter in policy.parameters()} == {1e-2}
    assert {rates[id(parameter)] for parameter in value_model.model.score.parameters()} == {5e-2}


def test_a_reward_model_that_cannot_learn_is_refused(tiny_causal_lm: Any, tmp_path: Path) -> None:
    frozen_model = TokenRewardModel.from_backbone(tiny_causal_lm)
    frozen_model.requires_grad_(False)
    with pytest.raises(ValueError, match="model has no trainable parameters"):
        TokenRewardTrainer(frozen_model, reward_config(tmp_path), train_dataset=pairs(4))
    TokenRewardTrainer(frozen_model, reward_config(tmp_path), eval_dataset=pairs(4)).evaluate()
    adapted = TokenRewardModel.from_backbone(tiny_causal_lm)
    peft.inject_adapter_in_model(lora(), adapted.model)
    with pytest.raises(ValueError, match="model has adapters but is no PeftModel"):
        TokenRewardTrainer(adapted, reward_config(tmp_path), train_dataset=pairs(4))
    with pytest.raises(ValueError, match="model has adapters and peft_config is given"):
        TokenRewardTrainer(adapted, reward_config(tmp_path), train_dataset=pairs(4), peft_config=lora())
    inner = TokenRewardModel.from_backbone(tiny_causal_lm).model
    peft.get_peft_model(inner, lora(task_type="TOKEN_CLS")).save_pretrained(tmp_path / "adapter")
    inner = TokenRewardModel.from_backbone(tiny_causal_lm).model
    loaded = peft.PeftModel.from_pretrained(inner, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"model has no trainable parameters; .* is_trainable=True"):
        TokenRewardTrainer(TokenRewardModel(loaded), reward_config(tmp_path), train_dataset=pairs(4))
