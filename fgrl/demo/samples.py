"""Real responses with the token reward model's rewards: what the report's heat map shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fgrl.demo.config import DemoConfig
from fgrl.demo.stages import Tick, heldout_prompts, load_tokenizer, read_text, reward_folder
from fgrl.models import TokenRewardModel


@dataclass(frozen=True)
class ScoredText:
    """A response with the token reward model's reward of each token.

    Attributes:
        policy: whose response it is.
        tokens: text of each token; joined, they are the response.
        rewards: reward of each token.
        wrong: whether the token is part of a word that the annotator would change.
        corrected: the response as the annotator would leave it.
    """

    policy: str
    tokens: list[str]
    rewards: list[float]
    wrong: list[bool]
    corrected: str


@dataclass(frozen=True)
class Sample:
    """A held-out prompt and the responses of every policy to it."""

    prompt: str
    responses: list[ScoredText]


def score_samples(config: DemoConfig, folder: Path, responses: Mapping[str, Sequence[str]], tick: Tick) -> list[Sample]:
    """The policies' responses to the first held-out prompts, scored by the token reward model.

    The first ones, whatever they are: nothing is picked.

    Args:
        config: the demo's settings.
        folder: holds the models.
        responses: policy -> its responses to the first held-out prompts, as many for each policy.
        tick: told the share that is done.
    """
    corpus, annotator = read_text(config)
    tokenizer = load_tokenizer(folder)
    model = TokenRewardModel.from_pretrained(folder / reward_folder("token")).eval()

    def score(policy: str, prompt: str, response: str) -> ScoredText:
        prompt_ids = tokenizer(prompt)["input_ids"]
        encoded = tokenizer(response, return_offsets_mapping=True)
        with torch.no_grad():
            rewards = model(torch.tensor([prompt_ids + encoded["input_ids"]]))[0, len(prompt_ids) :].tolist()
        wrong = annotator.wrong_spans(response, complete=False)
        offsets = encoded["offset_mapping"]
        ends = [end for _, end in offsets]
        return ScoredText(
            policy=policy,
            tokens=[response[start:end] for start, end in zip([0, *ends], ends, strict=False)],
            rewards=rewards,
            wrong=[any(left < end and start < right for left, right in wrong) for start, end in offsets],
            corrected=annotator.correct(response, complete=False),
        )

    count = min(map(len, responses.values()))
    samples = []
    for i, prompt in enumerate(heldout_prompts(config, corpus)[:count]):
        samples.append(Sample(prompt, [score(name, prompt, texts[i]) for name, texts in responses.items()]))
        tick((i + 1) / count)
    return samples
