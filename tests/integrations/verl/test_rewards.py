"""Token rewards on their way through verl's reward manager, agent loop and batch."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, AgentLoopWorker
from verl.trainer.ppo.reward import load_reward_manager

import fgrl.integrations.verl as adapter
from fgrl.integrations.verl.rewards import DenseRewardManager, TokenRewards
from fgrl.models import TokenRewardModel

PROMPT, RESPONSE = [5, 6, 7], [8, 9, 10, 11]


def config(**reward: Any) -> Any:
    """The part of verl's configuration that its loader reads, with our manager."""
    manager = {
        "source": "importlib",
        "name": "DenseRewardManager",
        "module": {"path": "pkg://fgrl.integrations.verl.rewards", "name": "unused"},
    }
    function = {"path": None, "name": "compute_score"}
    return OmegaConf.create({"reward": {"reward_manager": manager, "custom_reward_function": function, **reward}})


def data(padding: int = 0, from_agent_loop: bool = True) -> DataProto:
    """One response as the agent loop hands it over; otherwise as the driver does, padded on both sides."""
    prompt, response = torch.tensor([PROMPT]), torch.tensor([RESPONSE])
    mask = torch.ones(1, len(PROMPT) + len(RESPONSE), dtype=torch.long)
    extra: dict[str, Any] = {
        "data_source": np.array(["toy"], dtype=object),
        "reward_model": np.array([{"ground_truth": "x"}], dtype=object),
        "extra_info": np.array([{"index": 3}], dtype=object),
    }
    if from_agent_loop:
        extra |= {"prompt_len": np.array([len(PROMPT)]), "response_len": np.array([len(RESPONSE)])}
        mask = torch.nn.functional.pad(mask, (0, 2 * padding))
        prompt = torch.nn.functional.pad(prompt, (0, padding))
    else:
        mask = torch.nn.functional.pad(mask, (padding, padding))
        prompt = torch.nn.functional.pad(prompt, (padding, 0))
    response = torch.nn.functional.pad(response, (0, padding))
    batch = TensorDict({"prompts": prompt, "responses": response, "attention_mask": mask}, batch_size=1)
    return DataProto(batch=batch, non_tensor_batch=extra)


def run(manager: Any, batch: DataProto) -> dict[str, Any]:
    return manager.loop.run_until_complete(manager.run_single(batch))


@pytest.fixture
def make_manager(tmp_path: Path, tiny_tokenizer: Any) -> Any:
    """A manager with a function of the user whose last line is given, loaded as verl loads it."""

    def make(result: str, **reward: Any) -> DenseRewardManager:
        path = tmp_path / "reward.py"
        path.write_text(
            "import numpy, torch\n"
            "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
            f"    return {result}\n"
        )
        made = config(**reward)
        made.reward.custom_reward_function.path = str(path)
        return load_reward_manager(made, tiny_tokenizer)

    return make


@pytest.mark.parametrize("from_agent_loop", [True, False])
@pytest.mark.parametrize("padding", [0, 3])
def test_a_function_sees_the_tokens(make_manager: Any, padding: int, from_agent_loop: bool) -> None:
    manager = make_manager("[float(i) for i in extra_info['response_ids']]")
    assert type(manager) is DenseRewardManager
    result = run(manager, data(padding, from_agent_loop))
    assert result["reward_score"].tokens == [8.0, 9.0, 10.0, 11.0]
    assert float(result["reward_score"]) == 38.0
    assert result["reward_extra_info"] == {"acc": 38.0}
    manager = make_manager("{'score': float(len(extra_info['response_tokens']) + extra_info['prompt_ids'][0])}")
    assert run(manager, data(padding, from_agent_loop))["reward_score"].outcome == 9.0


@pytest.mark.parametrize(
    ("result", "tokens", "outcome", "extra"),
    [
        ("torch.arange(4)", [0, 1, 2, 3], 0, {"acc": 6.0}),
        ("numpy.array([1.0, 2.0, 3.0, 4.0])", [1, 2, 3, 4], 0, {"acc": 10.0}),
        ("0.5", [0, 0, 0, 0], 0.5, {"acc": 0.5}),
        ("{'score': [1, 2, 3, 4], 'right': True}", [1, 2, 3, 4], 0, {"score": 10.0, "right": True}),
        ("{'score': 2.0, 'token_rewards': (1, 0, 0, 1)}", [1, 0, 0, 1], 2, {"score": 2.0}),
    ],
)
def test_what_a_function_may_return(
    make_manager: Any, result: str, tokens: list[float], outcome: float, extra: dict[str, Any]
) -> None:
    found = run(make_manager(result), data())
    assert found["reward_score"].tokens == tokens
    assert found["reward_score"].outcome == outcome
    assert found["reward_score"] == sum(tokens) + outcome
    assert found["reward_extra_info"] == extra


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (
            "[1.0, 2.0]",
            r"token_rewards of compute_score has shape \[2\]; it must be one number for each of the 4 tokens",
        ),
        (
            "{'score': 1.0, 'token_rewards': 2.0}",
            r"token_rewards of compute_score has shape \[\]; it must be one number",
        ),
        ("[[1.0], [2.0], [1.0], [0.0]]", r"score of compute_score has shape \[4, 1\]; it must be one number"),
        (
            "[1.0, float('nan'), 1.0, 1.0]",
            "token_rewards of compute_score has values that are not finite; they must be",
        ),
        ("float('inf')", "score of compute_score has values that are not finite; they must be finite"),
    ],
)
def test_what_a_function_may_not_return(make_manager: Any, result: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(make_manager(result), data())


class TestTokenRewardModel:
    @pytest.fixture
    def path(self, tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
        model = TokenRewardModel.from_backbone(tiny_causal_lm)
        torch.nn.init.normal_(model.model.score.weight)
        model.save_pretrained(tmp_path / "model")
        tiny_tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    @pytest.mark.parametrize("padding", [0, 3])
    def test_its_rewards_arrive(self, path: Path, tiny_tokenizer: Any, padding: int) -> None:
        made = config(reward_kwargs={"token_reward_model": str(path), "token_reward_scale": 0.5})
        found = run(load_reward_manager(made, tiny_tokenizer), data(padding, from_agent_loop=False))
        model = TokenRewardModel.from_pretrained(path, trainable=False)
        with torch.no_grad():
            expected = 0.5 * model(torch.tensor([PROMPT + RESPONSE]))[0, len(PROMPT) :]
        assert expected.abs().min() > 0
        torch.testing.assert_close(torch.tensor(found["reward_score"].tokens), expected)

    def test_they_are_added_to_those_of_a_function(self, path: Path, make_manager: Any, tiny_tokenizer: Any) -> None:
        options = {"token_reward_model": str(path)}
        alone = run(load_reward_manager(config(reward_kwargs=options), tiny_tokenizer), data())["reward_score"]
        both = run(make_manager("{'score': 3.0, 'token_rewards': [1, 1, 1, 1]}", reward_kwargs=options), data())
        assert both["reward_score"].outcome == 3.0
        assert both["reward_score"].tokens == pytest.approx([token + 1 for token in alone.tokens])

    def test_another_vocabulary_is_refused(self, path: Path, tiny_tokenizer: Any) -> None:
        import copy

        other = copy.deepcopy(tiny_tokenizer)
        other.add_tokens(["<new>"])
        with pytest.raises(ValueError, match="the vocabulary of the reward model's tokenizer is not the policy's"):
            load_reward_manager(config(reward_kwargs={"token_reward_model": str(path)}), other)

    def test_nothing_to_score_with_is_refused(self, tiny_tokenizer: Any) -> None:
        with pytest.raises(ValueError, match=r"reward_kwargs\.token_reward_model are None; one of them must be given"):
            load_reward_manager(config(), tiny_tokenizer)


def agent_loop_output(mask: list[int], score: Any) -> AgentLoopOutput:
    output = AgentLoopOutput(
        prompt_ids=PROMPT, response_ids=RESPONSE[: len(mask)], response_mask=mask, metrics=AgentLoopMetrics()
    )
    output.reward_score = score  # as AgentLoopWorker._compute_score sets it
    return output


def test_the_agent_loop_lays_them_out() -> None:
    """The tokens of a tool have none, and the outcome comes to the last token of the policy."""
    score = pickle.loads(pickle.dumps(TokenRewards([1.0, 2.0, 3.0, 4.0], outcome=0.5)))
    found = agent_loop_output([1, 0, 1, 0], score).as_dict()
    assert found["rm_scores"].tolist() == [1.0, 0.0, 3.5, 0.0]
    assert found["rm_scores"].dtype == torch.float32


def test_one_number_goes_where_verl_puts_it() -> None:
    assert agent_loop_output([1, 1, 1, 1], 2.0).as_dict()["rm_scores"].tolist() == [0.0, 0.0, 0.0, 2.0]


def test_rewards_of_another_response_are_refused() -> None:
    with pytest.raises(ValueError, match="the reward has 2 entries; it must have 4, one a token of the response"):
        agent_loop_output([1, 1, 1, 1], TokenRewards([1.0, 2.0])).as_dict()


def test_batches_of_the_driver() -> None:
    """Where a reward model shares the policy's devices, verl scores the whole batch at once."""
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
    batch = {"responses": torch.zeros(2, 4, dtype=torch.long), "attention_mask": mask}
    proto = DataProto(batch=TensorDict(batch, batch_size=2))
    scores = [TokenRewards([1.0, 2.0, 3.0], 0.5), TokenRewards([4.0, 5.0])]
    found = DenseRewardManager.assemble_rm_scores(proto, scores)
    assert found.tolist() == [[1.0, 2.0, 3.5, 0.0], [4.0, 5.0, 0.0, 0.0]]


def test_the_trainer_before_v1(tiny_tokenizer: Any) -> None:
    """`AgentLoopWorker` without its subclass, whose padded output makes plain numbers of scores."""
    worker = object.__new__(AgentLoopWorker)
    worker.rollout_config = SimpleNamespace(prompt_length=5, response_length=6)
    worker.tokenizer, worker.processor, worker.distillation_enabled = tiny_tokenizer, None, False
    worker.reward_loop_worker_handles, worker.mm_processor_kwargs = None, {}

    async def batch() -> DataProto:
        scores = [TokenRewards([1.0, 2.0, 3.0, 4.0]), TokenRewards([5.0, 6.0], outcome=1.0)]
        outputs = [agent_loop_output([1] * len(score.tokens), score) for score in scores]
        padded = [await worker._agent_loop_postprocess(output, False, raw_prompt="") for output in outputs]
        return worker._postprocess(padded)

    found = asyncio.run(batch()).batch["rm_scores"]
    assert found.tolist() == [[1.0, 2.0, 3.0, 4.0, 0.0, 0.0], [5.0, 7.0, 0.0, 0.0, 0.0, 0.0]]


def test_undo_reaches_the_agent_loop() -> None:
    adapter.undo()
    try:
        assert AgentLoopOutput.as_dict.__module__.startswith("verl.")
        assert AgentLoopWorker._postprocess.__module__.startswith("verl.")
    finally:
        adapter.apply()
    assert AgentLoopOutput.as_dict.__module__ == "fgrl.integrations.verl.rewards"
