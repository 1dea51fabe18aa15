"""On-policy distillation: how much more probable a teacher finds each sampled token than the policy does."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fgrl.models.causal import load_causal_lm
from fgrl.models.loading import load_tokenizer
from fgrl.trainer.rollout import completion_logprobs
from fgrl.trainer.sampling import Completions
from fgrl.types import is_number


class TeacherReward(nn.Module):
    """A reward source of `FineGrainedPPOTrainer`: `log pi_teacher - log pi` of each sampled token, in nats.

    Its mean over the policy's own samples is minus the reverse KL `KL(pi || pi_teacher)`: more reward is less
    divergence. `log pi` is the policy's when it sampled, at the temperature it sampled with. Both log-probabilities
    come from `fgrl.ops.linear_logprobs`: no logits of a whole sequence are kept, of either model.

    Pass one as `reward_model`, or several (and other sources) as a list with `reward_weights`: they add up. As the
    reward of a token judges that token alone, `gamma=0` is the usual choice with teachers only; and as the divergence
    is the reward, `kl_coef=0`.

    Args:
        model: the teacher, a causal LM of the policy's vocabulary (hidden sizes may differ), or its name or folder. It
            is frozen, and never trained.
        temperature: of the teacher's distribution, greater than 0.
        processing_class: the teacher's tokenizer, whose ids must mean what the policy's do. Default: that of the name
            or folder; for a model in memory only the sizes of the vocabularies can be compared.

    Raises:
        ValueError: a model that is none, or a temperature outside its range.
    """

    def __init__(
        self,
        model: nn.Module | str,
        *,
        temperature: float = 1.0,
        processing_class: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        if not (is_number(temperature) and 0 < temperature < math.inf):
            raise ValueError(f"temperature is {temperature!r}; it must be a finite number greater than 0")
        if not isinstance(model, nn.Module):
            processing_class = load_tokenizer(model) if processing_class is None else processing_class
            model = load_causal_lm(model)
        if not hasattr(model, "get_output_embeddings"):
            raise ValueError(f"model is a {type(model).__name__}; it must be a causal LM of transformers, or its name")
        teacher: Any = model
        self.model = teacher.requires_grad_(False).eval()
        self.temperature = float(temperature)
        self.processing_class = processing_class

    @torch.no_grad()
    def forward(self, completions: Completions, logprobs: Tensor, batch_size: int) -> Tensor:
        """`[B, T]` fp32: the reward of each token of the completions, 0 past their end.

        Args:
            completions: of the policy.
            logprobs: `[B, T]`, the policy's of their tokens.
            batch_size: sequences a forward pass of the teacher.
        """
        parts = completions.parts(batch_size)
        of_teacher = torch.cat([completion_logprobs(self.model, part, self.temperature) for part in parts])
        return torch.where(completions.completion_mask, of_teacher - logprobs, 0.0)
