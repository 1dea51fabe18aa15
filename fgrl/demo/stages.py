"""What the demo does, stage by stage. A stage reads and writes files of one folder, so that it can run in any
process."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from fgrl.data import PairDataset, PairEncoder
from fgrl.data.output import write_text
from fgrl.demo.annotator import SpellChecker
from fgrl.demo.config import DemoConfig
from fgrl.demo.corpus import Corpus, Misspeller, load_corpus, load_misspellings, make_prompts
from fgrl.demo.language_model import (
    TextWindows,
    build_model,
    noisy_copies,
    pretrain,
    sample_responses,
    train_tokenizer,
)
from fgrl.models import TokenRewardModel, ValueModel
from fgrl.trainer import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardConfig, TokenRewardTrainer

Level = Literal["token", "sequence"]
Tick = Callable[[float], None]  # told the share of the stage that is done

TOKENIZER, START, JUDGE = "tokenizer", "policy-start", "clean-prose-model"
TRAIN_PAIRS, HELDOUT_PAIRS = "edits.jsonl", "edits-heldout.jsonl"
_SAMPLING_SEED = 1_000_003  # keeps the streams of random numbers of the stages apart


def reward_folder(level: Level) -> str:
    """Where the reward model of a level is kept."""
    return f"reward-model-{level}"


def policy_folder(level: Level) -> str:
    """Where the policy that the reward of a level trained is kept."""
    return {"token": "policy-fine-grained", "sequence": "policy-sequence"}[level]


def read_text(config: DemoConfig) -> tuple[Corpus, SpellChecker]:
    """The prose and the annotator: the same in every process, by the seed."""
    corpus = load_corpus(config.seed, config.text.heldout_share)
    return corpus, SpellChecker(corpus.lexicon, load_misspellings())


def noisy_prose(config: DemoConfig, corpus: Corpus) -> list[list[str]]:
    """The training prose with mistakes, several times."""
    misspell = Misspeller(load_misspellings(), corpus.lexicon, config.text.misspelled_share)
    rng = random.Random(f"{config.seed}-mistakes")
    return noisy_copies(corpus.train, misspell, config.text.noisy_copies, rng)


def training_prompts(config: DemoConfig, corpus: Corpus) -> list[str]:
    """Prompts from training topics, for pairs and for PPO."""
    return make_prompts(corpus.train, config.text.prompt_words, random.Random(f"{config.seed}-prompts"))


def heldout_prompts(config: DemoConfig, corpus: Corpus) -> list[str]:
    """The prompts everything is judged on: beginnings of sentences of held-out topics."""
    rng = random.Random(f"{config.seed}-heldout")
    return make_prompts(corpus.heldout, config.text.prompt_words, rng)[: config.text.evaluation_prompts]


def tokenizer_stage(config: DemoConfig, folder: Path, tick: Tick) -> dict[str, Any]:
    """Train the tokenizer that all models share, on prose with mistakes."""
    corpus, _ = read_text(config)
    texts = (sentence + " " for document in noisy_prose(config, corpus) for sentence in document)
    tokenizer = train_tokenizer(texts, config.model.vocab_size)
    tokenizer.save_pretrained(folder / TOKENIZER)
    words = sum(len(sentence.split()) for document in corpus.train for sentence in document)
    heldout = sum(len(sentence.split()) for document in corpus.heldout for sentence in document)
    return {
        "vocabulary": len(tokenizer),
        "lexicon": len(corpus.lexicon),
        "training_topics": len(corpus.train),
        "training_words": words,
        "heldout_topics": len(corpus.heldout),
        "heldout_words": heldout,
    }


def pretrain_stage(config: DemoConfig, folder: Path, name: str, tick: Tick) -> dict[str, Any]:
    """Pre-train one language model: `START` on prose with mistakes, `JUDGE` on the clean prose of the same topics."""
    corpus, _ = read_text(config)
    tokenizer = load_tokenizer(folder)
    documents = noisy_prose(config, corpus) if name == START else list(map(list, corpus.train))
    windows = TextWindows(documents, tokenizer, config.pretrain.window)
    seed = config.seed + (0 if name == START else 1)
    model = build_model(config.model, tokenizer, seed)
    losses = pretrain(model, windows, config.pretrain, seed, lambda step, _: tick(step / config.pretrain.steps))
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_seen": config.pretrain.steps * config.pretrain.batch_size * config.pretrain.window,
        "loss": losses[:: max(1, len(losses) // 100)],
    }


def pairs_stage(config: DemoConfig, folder: Path, part: int, parts: int, tick: Tick) -> list[dict[str, str]]:
    """Sample responses from the start policy and let the annotator edit them.

    The first `config.reward.heldout_pairs` answer held-out prompts, the others training prompts. This is every
    `parts`-th of them, from `part` on; how many parts there are does not depend on the number of processes.
    """
    corpus, annotator = read_text(config)
    model, tokenizer = load_policy(folder, START)
    held = config.reward.heldout_pairs
    prompts = [
        *itertools.islice(itertools.cycle(heldout_prompts(config, corpus)), held),
        *itertools.islice(itertools.cycle(training_prompts(config, corpus)), config.reward.pairs - held),
    ]
    chosen = prompts[part::parts]
    seed = _SAMPLING_SEED * (part + 1) + config.seed
    responses = sample_responses(model, tokenizer, chosen, config.text.response_tokens, seed, on_batch=tick)
    return [
        {"prompt": prompt, "original": response, "edited": annotator.correct(response, complete=False)}
        for prompt, response in zip(chosen, responses, strict=True)
    ]


def reward_stage(config: DemoConfig, folder: Path, level: Level, tick: Tick) -> dict[str, Any]:
    """Train the reward model of a level with `TokenRewardTrainer`, on the same pairs for the same number of steps."""
    tokenizer = load_tokenizer(folder)
    # Responses are stopped by the length limit: no end-of-sequence token to read a score at.
    encoder = PairEncoder(tokenizer, max_length=None, append_eos=False, edit_unit="word")
    options = config.reward
    trainer = TokenRewardTrainer(
        TokenRewardModel.from_pretrained(folder / START),
        TokenRewardConfig(
            str(folder / reward_folder(level)),
            reward_level=level,
            unchanged_weight=options.unchanged_weight if level == "token" else 0.0,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=options.learning_rate,
            warmup_steps=5,
            logging_steps=5,
            **_trainer_options(config),
        ),
        train_dataset=PairDataset(folder / TRAIN_PAIRS, encoder),
        eval_dataset=PairDataset(folder / HELDOUT_PAIRS, encoder),
        processing_class=tokenizer,
        callbacks=[_Ticker(tick)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.reward_model.save_pretrained(folder / reward_folder(level))
    tokenizer.save_pretrained(folder / reward_folder(level))
    names = ("pair_accuracy", "edit_auc", "margin", "loss")
    return {
        **{name: metrics[f"eval_{name}"] for name in names if f"eval_{name}" in metrics},
        "steps": trainer.state.global_step,
        "curve": [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row],
    }


def ppo_stage(config: DemoConfig, folder: Path, level: Level, tick: Tick) -> dict[str, Any]:
    """Train the start policy with `FineGrainedPPOTrainer` on the reward model of a level."""
    corpus, annotator = read_text(config)
    policy, tokenizer = load_policy(folder, START)
    wrong_share: list[float] = []

    def watch(completions: list[str], **_: Any) -> list[float]:
        """Count wrong words for the report's curve. Its reward is 0: training does not see the count."""
        counts = [annotator.count(text, complete=False) for text in completions]
        wrong_share.append(100 * sum(wrong for wrong, _ in counts) / max(1, sum(words for _, words in counts)))
        return [0.0] * len(completions)

    options = config.ppo
    controller = KLController(options.kl_target)
    trainer = FineGrainedPPOTrainer(
        model=policy,
        ref_model=LlamaForCausalLM.from_pretrained(folder / START),
        reward_model=[TokenRewardModel.from_pretrained(folder / reward_folder(level)), watch],
        value_model=ValueModel.from_pretrained(folder / START),
        args=FineGrainedPPOConfig(
            str(folder / policy_folder(level)),
            reward_level=level,
            total_episodes=options.rollouts * options.prompts_per_rollout,
            per_device_train_batch_size=options.prompts_per_rollout // options.mini_batches,
            num_mini_batches=options.mini_batches,
            num_ppo_epochs=options.epochs,
            learning_rate=options.learning_rate,
            value_learning_rate=options.value_learning_rate,
            vf_coef=1.0,
            value_clip=None,
            warmup_steps=5,
            reward_kl_coef=options.kl_coef,
            lam=options.fine_grained_lam if level == "token" else options.sequence_lam,
            max_completion_length=config.text.response_tokens,
            generation_kwargs={"min_new_tokens": config.text.response_tokens},
            logging_steps=options.epochs * options.mini_batches,
            **_trainer_options(config),
        ),
        processing_class=tokenizer,
        train_dataset=[{"prompt": prompt} for prompt in training_prompts(config, corpus)],
        callbacks=[_Ticker(tick), controller],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.policy.save_pretrained(folder / policy_folder(level))
    tokenizer.save_pretrained(folder / policy_folder(level))
    history = [row for row in trainer.state.log_history if "reward" in row]
    return {
        "steps": trainer.state.global_step,
        "errors_per_100_words": wrong_share,
        "reward": [row["reward"] for row in history],
        "kl_per_response": [row["kl_per_sequence"] for row in history],
        "kl_coef": controller.coefficients,
        "explained_variance": [row["explained_variance"] for row in history],
    }


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The demo's tokenizer."""
    return PreTrainedTokenizerFast.from_pretrained(folder / TOKENIZER)


def load_policy(folder: Path, name: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A language model of the demo and the tokenizer."""
    return LlamaForCausalLM.from_pretrained(folder / name).eval(), load_tokenizer(folder)


def write_pairs(path: Path, rows: list[dict[str, str]]) -> None:
    """Edited pairs as JSONL: what `fgrl train-reward` reads."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _trainer_options(config: DemoConfig) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }


class KLController(TrainerCallback):
    """Moves `reward_kl_coef` so that the KL from the reference approaches a target (Ziegler et al., arXiv 1909.08593).

    It rises faster than it falls: the KL of the first rollouts is small because the policy has not moved yet, not
    because the coefficient is too large.

    Args:
        target: nats a response.
        most_down: most that one rollout lowers the coefficient, as a share of it.
        most_up: most that one rollout raises it.
    """

    def __init__(self, target: float, most_down: float = 0.05, most_up: float = 0.2) -> None:
        self._target = target
        self._most_down, self._most_up = most_down, most_up
        self.coefficients: list[float] = []  # of each rollout so far

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after every rollout."""
        logs = kwargs.get("logs") or {}
        if "kl_per_sequence" in logs:
            self.coefficients.append(args.reward_kl_coef)
            error = logs["kl_per_sequence"] / self._target - 1.0
            args.reward_kl_coef *= 1.0 + max(-self._most_down, min(self._most_up, error))


class _Ticker(TrainerCallback):
    def __init__(self, tick: Tick) -> None:
        self._tick = tick

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tick(state.global_step / max(1, state.max_steps))
