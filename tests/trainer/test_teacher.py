"""Teachers as reward sources: the reward of each token, several of them, and less divergence for who follows it."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fgrl import TeacherReward  # noqa: E402
from fgrl.trainer.sampling import Completions  # noqa: E402

# A token's reward is its advantage: no discounting, no critic's part, no KL to the start.
BARE = {"whiten_advantages": False, "gamma": 0.0, "lam": 0.0, "reward_kl_coef": 0.0}


def teacher_of(model: Any, seed: int, hidden_size: int = 16) -> Any:
    """Another model of the policy's vocabulary and of another width, whose head makes its choice clear."""
    config = copy.deepcopy(model.config)
    config.hidden_size, config.intermediate_size = hidden_size, 32
    config.head_dim = None
    torch.manual_seed(seed)
    teacher = transformers.LlamaForCausalLM(type(config)(**{**config.to_dict(), "head_dim": None}))
    torch.nn.init.normal_(teacher.lm_head.weight, std=0.5)
    return teacher.eval()


def logprobs_of(model: Any, rollout: Any, temperature: float = 1.0) -> torch.Tensor:
    """`[B, T]`, plainly: logits of the whole sequence without its padding."""
    found = torch.zeros(rollout.completion_mask.shape)
    for row, keep in enumerate(rollout.attention_mask.bool()):
        ids = rollout.input_ids[row][keep][None]
        length = int(rollout.completion_mask[row].sum())
        with torch.no_grad():
            logprobs = (model(ids).logits[0] / temperature).log_softmax(-1)
        found[row, :length] = logprobs[:-1].gather(1, ids[0, 1:, None])[-length:, 0]
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_reward_is_how_much_more_probable_the_teacher_finds_each_token(
    temperature: float, rollout_of: Any, make_trainer: Any, tiny_causal_lm: Any
) -> None:
    teacher = teacher_of(tiny_causal_lm, 1)
    trainer = make_trainer(BARE, reward_model=TeacherReward(teacher, temperature=temperature))
    rollout, metrics = rollout_of(trainer)
    rewards = logprobs_of(teacher, rollout, temperature) - rollout.old_logprobs
    expected = torch.where(rollout.completion_mask, rewards, 0.0)
    torch.testing.assert_close(rollout.advantages, expected, atol=1e-4, rtol=1e-4)  # the value head starts at 0
    torch.testing.assert_close(
        float(metrics["reward/TeacherReward"]), float(expected.sum(1).mean()), atol=1e-3, rtol=1e-3
    )


def test_several_teachers_and_a_function_add_up_by_their_weights(
    rollout_of: Any, make_trainer: Any, tiny_causal_lm: Any
) -> None:
    teachers = [teacher_of(tiny_causal_lm, seed) for seed in (1, 2)]

    def one_a_token(completion_ids: Any, **columns: Any) -> Any:
        return [[1.0] * len(ids) for ids in completion_ids]

    sources = [*(TeacherReward(teacher) for teacher in teachers), one_a_token]
    trainer = make_trainer(BARE | {"reward_weights": [0.75, 0.25, 3.0]}, reward_model=sources)
    rollout, metrics = rollout_of(trainer)
    first, second = (logprobs_of(teacher, rollout) - rollout.old_logprobs for teacher in teachers)
    expected = torch.where(rollout.completion_mask, 0.75 * first + 0.25 * second + 3, 0.0)
    torch.testing.assert_close(rollout.advantages, expected, atol=1e-4, rtol=1e-4)
    assert {"reward/TeacherReward", "reward/TeacherReward_1", "reward/one_a_token"} <= set(metrics)


def test_following_the_reward_reduces_the_divergence_from_the_teacher(tiny_causal_lm: Any) -> None:
    """The policy gradient with this reward, in expectation: every token once, weighted by its probability. So the test
    does not hang on the luck of sampling, and its gradient is that of the reverse KL."""
    policy, teacher = copy.deepcopy(tiny_causal_lm), teacher_of(tiny_causal_lm, 1)
    source, optimizer = TeacherReward(teacher), torch.optim.Adam(policy.parameters(), 1e-3)
    prompt, vocabulary = torch.tensor([[5, 6, 7]]), torch.arange(tiny_causal_lm.config.vocab_size)[:, None]
    input_ids = torch.cat([prompt.expand(len(vocabulary), -1), vocabulary], 1)
    mask = torch.ones_like(vocabulary, dtype=torch.bool)
    completions = Completions(input_ids, torch.ones_like(input_ids), mask, mask[:, 0])
    divergences = []
    for _ in range(10):
        logprobs = policy(prompt).logits[0, -1].log_softmax(-1)
        with torch.no_grad():
            gap = logprobs.detach() - teacher(prompt).logits[0, -1].log_softmax(-1)
        divergences.append(float((logprobs.detach().exp() * gap).sum()))
        rewards = source(completions, logprobs.detach()[:, None], batch_size=64)[:, 0]
        torch.testing.assert_close(rewards, -gap, atol=1e-4, rtol=1e-4)
        optimizer.zero_grad()
        (-(logprobs.detach().exp() * rewards) @ logprobs).backward()
        optimizer.step()
    assert all(after < before for before, after in itertools.pairwise(divergences))
    assert divergences[-1] < 0.9 * divergences[0]


def test_the_teacher_is_frozen(tiny_causal_lm: Any) -> None:
    source = TeacherReward(teacher_of(tiny_causal_lm, 1))
    assert not any(parameter.requires_grad for parameter in source.parameters())


def test_a_teacher_that_is_the_policy_is_refused(make_trainer: Any, tiny_causal_lm: Any) -> None:
    """Its reward would be 0 for ever, and freezing it would freeze the policy."""
    policy = copy.deepcopy(tiny_causal_lm)
    with pytest.raises(ValueError, match=r"^model has no trainable parameters"):
        make_trainer(model=policy, reward_model=TeacherReward(policy))


def test_a_teacher_of_another_vocabulary_is_refused(
    make_trainer: Any, tiny_causal_lm: Any, tiny_tokenizer: Any
) -> None:
    smaller = copy.deepcopy(tiny_causal_lm.config)
    smaller.vocab_size -= 1
    with pytest.raises(ValueError, match="reward_model"):
        make_trainer(reward_model=TeacherReward(transformers.LlamaForCausalLM(smaller)))
    swapped = copy.deepcopy(tiny_tokenizer)
    swapped.add_tokens(["<another>"])
    with pytest.raises(ValueError, match="<another>"):
        make_trainer(reward_model=TeacherReward(teacher_of(tiny_causal_lm, 1), processing_class=swapped))


def test_a_teacher_by_its_folder(rollout_of: Any, make_trainer: Any, tiny_checkpoint: Path) -> None:
    trainer = make_trainer(BARE, reward_model=TeacherReward(str(tiny_checkpoint)))
    rollout, _ = rollout_of(trainer)
    torch.testing.assert_close(rollout.advantages, torch.zeros_like(rollout.advantages), atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), "1", True], ids=repr)
def test_a_bad_temperature_is_named(temperature: Any, tiny_causal_lm: Any) -> None:
    with pytest.raises(ValueError, match=r"^temperature is .*; it must be"):
        TeacherReward(tiny_causal_lm, temperature=temperature)


def test_what_is_no_causal_lm_is_named() -> None:
    with pytest.raises(ValueError, match=r"^model is a Linear; it must be a causal LM"):
        TeacherReward(torch.nn.Linear(2, 2))
