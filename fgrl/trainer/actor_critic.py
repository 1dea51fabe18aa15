"""Policy and value model as one module, so that one optimizer, one DDP wrapper and one backward serve both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fgrl.models import ValueModel, hidden_states_and_head
from fgrl.ops import linear_ppo_loss, value_loss
from fgrl.trainer.ppo_config import FineGrainedPPOConfig
from fgrl.trainer.rollout import Rollout, before_tokens


class ActorCritic(nn.Module):
    """Computes the whole PPO loss in its forward.

    Args:
        policy: a Hugging Face causal LM, or a PEFT model of one.
        value_model: the value model.
        args: the options of the loss.
    """

    def __init__(self, policy: Any, value_model: ValueModel, args: FineGrainedPPOConfig) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        self.loss_config = args.loss_config
        self.temperature = args.temperature
        self.vf_coef = args.vf_coef
        self.value_clip = args.value_clip

    @property
    def config(self) -> Any:
        """The policy's configuration."""
        return self.policy.config

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute the activations of both models in the backward pass; arguments as transformers has them."""
        self._both("activation_checkpointing_enable", *args, **kwargs)

    def activation_checkpointing_disable(self) -> None:
        """Keep the activations of both models."""
        self._both("activation_checkpointing_disable")

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The name that older versions of transformers call."""
        self._both("gradient_checkpointing_enable", *args, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """The name that older versions of transformers call."""
        self._both("gradient_checkpointing_disable")

    def _both(self, method: str, *args: Any, **kwargs: Any) -> None:
        for model in (self.policy, self.value_model.model):
            getattr(model, method)(*args, **kwargs)

    def forward(self, batch: Rollout, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and statistics of some sequences of a rollout.

        Args:
            batch: the sequences.
            normalizer: 0-d, denominator of the aggregation over all sequences of the optimizer step.
        """
        mask = batch.completion_mask
        length = mask.shape[1]
        states = hidden_states_and_head(self.policy, batch.input_ids, batch.attention_mask)
        policy = linear_ppo_loss(
            before_tokens(states.hidden, length),
            states.weight,
            batch.input_ids[:, -length:],
            batch.old_logprobs,
            batch.advantages,
            mask,
            bias=states.bias,
            softcap=states.softcap,
            temperature=self.temperature,
            ref_logprobs=batch.ref_logprobs,
            normalizer=normalizer,
            config=self.loss_config,
        )
        values = before_tokens(self.value_model(batch.input_ids, batch.attention_mask), length)
        value = value_loss(
            values,
            batch.old_values,
            batch.returns,
            mask,
            clip=self.value_clip,
            normalizer=normalizer,
            aggregation=self.loss_config.aggregation,
        )
        if torch.is_grad_enabled():
            _check_gradient(policy.loss, "model")
            _check_gradient(value.loss, "value_model")
        stats = {
            **policy.stats,
            "value_loss": value.stats["value_loss"],
            "value_clip_fraction": value.stats["clip_fraction"],
        }
        return policy.loss + self.vf_coef * value.loss, stats


def step_normalizer(masks: Tensor, aggregation: str) -> Tensor:
    """0-d float64: local count of what the aggregation divides by, tokens or sequences; 1 for nothing."""
    if aggregation == "token-sum":
        return torch.ones((), dtype=torch.float64, device=masks.device)
    counted = masks.any(1) if aggregation.startswith("seq-") else masks
    return counted.sum().to(torch.float64)


def _check_gradient(loss: Tensor, name: str) -> None:
    if not loss.requires_grad:
        raise ValueError(
            f"{name} has trainable parameters, but none that its output depends on; it must have some: is the "
            "trainable adapter the active one?"
        )
