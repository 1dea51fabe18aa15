"""How good a policy's responses are: wrong words, fluency, variety, and who wins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrl.demo.config import DemoConfig
from fgrl.demo.corpus import Corpus
from fgrl.demo.language_model import negative_log_likelihood, sample_responses
from fgrl.demo.stages import JUDGE, START, Tick, heldout_prompts, load_policy, load_tokenizer, read_text

_EVALUATION_SEED = 7_000_003
HUMAN = "human"


@dataclass(frozen=True)
class Judged:
    """One policy's responses to the held-out prompts, and what was measured on them.

    Attributes:
        metrics: `errors_per_100_words` (words outside the lexicon), `perplexity` (a token, under the clean-prose
            model), `perplexity_corrected` (the same after the annotator corrected the text: fluency apart from
            spelling), `distinct2` (different word pairs over all word pairs), `words` and `tokens` (mean length of a
            response), `kl` (nats a response from the starting policy, estimated on these samples).
        responses: the responses.
        error_rates: wrong words per word of each response.
    """

    metrics: dict[str, float]
    responses: list[str]
    error_rates: list[float]


def judge_stage(config: DemoConfig, folder: Path, name: str, tick: Tick) -> Judged:
    """Judge one policy, or with `HUMAN` the prose itself, on the held-out prompts."""
    corpus, annotator = read_text(config)
    prompts = heldout_prompts(config, corpus)
    tokenizer = load_tokenizer(folder)
    kl = 0.0
    if name == HUMAN:
        prompts, responses = human_continuations(corpus, prompts, config)
    else:
        model, _ = load_policy(folder, name)
        seed = config.seed + _EVALUATION_SEED
        responses = sample_responses(model, tokenizer, prompts, config.text.response_tokens, seed, on_batch=tick)
        if name != START:
            start, _ = load_policy(folder, START)
            ours = negative_log_likelihood(model, tokenizer, prompts, responses)
            theirs = negative_log_likelihood(start, tokenizer, prompts, responses)
            kl = sum(ref - own for (own, _), (ref, _) in zip(ours, theirs, strict=True)) / len(responses)
    judge, _ = load_policy(folder, JUDGE)
    scored = negative_log_likelihood(judge, tokenizer, prompts, responses)
    corrected = [annotator.correct(response, complete=False) for response in responses]
    scored_corrected = negative_log_likelihood(judge, tokenizer, prompts, corrected)
    counts = [annotator.count(response, complete=False) for response in responses]
    metrics = {
        "errors_per_100_words": 100.0 * sum(wrong for wrong, _ in counts) / max(1, sum(words for _, words in counts)),
        "perplexity": perplexity(scored),
        "perplexity_corrected": perplexity(scored_corrected),
        "distinct2": distinct2(responses),
        "words": sum(words for _, words in counts) / len(counts),
        "tokens": sum(tokens for _, tokens in scored) / len(scored),
        "kl": kl,
    }
    return Judged(metrics, responses, [wrong / max(1, words) for wrong, words in counts])


def human_continuations(corpus: Corpus, prompts: Sequence[str], config: DemoConfig) -> tuple[list[str], list[str]]:
    """The prose's own continuation of each prompt, about as long as a response."""
    words = round(config.text.response_tokens / 1.4)
    found: dict[str, str] = {}
    for document in corpus.heldout:
        for i, sentence in enumerate(document):
            head = " ".join(sentence.split()[: config.text.prompt_words])
            tail = " ".join(document[i : i + 4]).split()[config.text.prompt_words :][:words]
            found.setdefault(head, " " + " ".join(tail))
    return list(prompts), [found[prompt] for prompt in prompts]


def perplexity(scored: Sequence[tuple[float, int]]) -> float:
    """Perplexity a token from `(negative log-likelihood, tokens)` of each text."""
    return math.exp(sum(nll for nll, _ in scored) / max(1, sum(tokens for _, tokens in scored)))


def distinct2(texts: Sequence[str]) -> float:
    """Different pairs of neighbouring words over all pairs: low where a policy repeats itself."""
    pairs = [pair for text in texts for words in [text.split()] for pair in itertools.pairwise(words)]
    return len(set(pairs)) / max(1, len(pairs))


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of prompts on which `ours` has fewer wrong words per word; a tie counts half."""
    points = [1.0 if a < b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)]
    return sum(points) / len(points)


def warnings(policies: dict[str, dict[str, Any]]) -> list[str]:
    """What looks degenerate in the trained policies, measured against the start: one sentence each."""
    start = policies["start"]
    found = []
    for name, policy in policies.items():
        title = name.replace("_", "-")
        for key, what in (("perplexity", "perplexity"), ("perplexity_corrected", "perplexity of the corrected text")):
            if policy[key] > 1.3 * start[key]:
                found.append(f"the {title} policy's {what} is {policy[key] / start[key]:.2f} times the start's")
        if policy["distinct2"] < 0.7 * start["distinct2"]:
            share = policy["distinct2"] / start["distinct2"]
            found.append(f"the {title} policy repeats itself: distinct-2 is {share:.2f} of the start's")
        if abs(policy["tokens"] / start["tokens"] - 1.0) > 0.1:
            found.append(f"the {title} policy's responses are {policy['tokens'] / start['tokens']:.2f} times as long")
    return found
