"""Every number of the demo in one place."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class TextConfig:
    """Prose, mistakes, prompts and responses."""

    heldout_share: float = 0.15  # of the words, in whole topics
    misspelled_share: float = 0.2  # of the words of three letters and more
    noisy_copies: int = 6  # versions of the training prose, each with mistakes of its own
    prompt_words: int = 8
    response_tokens: int = 28
    evaluation_prompts: int = 192


@dataclass(frozen=True)
class ModelSize:
    """Shape of a small Llama: every field has the meaning it has in `transformers.LlamaConfig`."""

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    max_position_embeddings: int = 128


@dataclass(frozen=True)
class PretrainConfig:
    """How a language model is pre-trained: AdamW with a linear warm-up and a cosine decay to a tenth."""

    steps: int = 1300
    batch_size: int = 8
    window: int = 48
    learning_rate: float = 3e-3
    warmup: int = 40
    weight_decay: float = 0.1


@dataclass(frozen=True)
class RewardConfig:
    """How both reward models are trained; they differ in `reward_level` alone."""

    pairs: int = 2048
    heldout_pairs: int = 192  # of `pairs`: answers to held-out prompts, for pair_accuracy and edit_auc
    epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 1e-3
    unchanged_weight: float = 1.0  # keeps the reward of kept tokens near 0: right words should not be told apart


@dataclass(frozen=True)
class PPOConfig:
    """How both policies are trained; see `fine_grained_lam` for the one number that goes with the reward level."""

    rollouts: int = 40
    prompts_per_rollout: int = 64
    epochs: int = 1
    mini_batches: int = 2
    learning_rate: float = 1e-3
    value_learning_rate: float = 2e-3
    kl_coef: float = 0.3  # at the start; `KLController` then moves it
    kl_target: float = 11.0  # nats a response, for both: they are compared at the same distance from the start
    fine_grained_lam: float = 0.0
    sequence_lam: float = 0.95


@dataclass(frozen=True)
class DemoConfig:
    """The whole demo.

    Attributes:
        seed: decides everything that is drawn: held-out topics, mistakes, weights, samples, batches.
        workers: processes that work at the same time, one thread each. It changes the time, not the result.
    """

    seed: int = 0
    workers: int = 2
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelSize = field(default_factory=ModelSize)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def quick(self) -> DemoConfig:
        """The same pipeline in seconds: too small to learn much, enough to see every part run."""
        return replace(
            self,
            text=replace(self.text, noisy_copies=1, evaluation_prompts=16),
            model=replace(self.model, vocab_size=768, hidden_size=32, intermediate_size=96, num_hidden_layers=2),
            pretrain=replace(self.pretrain, steps=60),
            reward=replace(self.reward, pairs=96, heldout_pairs=32, epochs=1),
            ppo=replace(self.ppo, rollouts=2, prompts_per_rollout=16),
        )
