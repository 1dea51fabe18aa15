"""verl's fused head by `linear_logprobs`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial
from verl.utils.experimental.torch_functional import FusedLinearForPPO

from fgrl import ops


class FusedLinear(FusedLinearForPPO):
    """`FusedLinearForPPO`, whose back end "torch" is `linear_logprobs`; others stay verl's.

    FSDP2 shards a head that is not tied to the embedding by itself, and verl reads its weight without calling it: what
    arrives is a DTensor, which is gathered here.
    """

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies, fp32, in the shape of `input_ids`.

        Args:
            hidden_states: `[N, D]` or `[B, T, D]`.
            vocab_weights: `[V, D]`, a tensor or a DTensor.
            input_ids: `[N]` or `[B, T]`: the token that each position predicts.
            temperature: the sampling temperature.
        """
        if self.impl_backend != "torch":
            return super().forward(hidden_states, vocab_weights, input_ids, temperature, **kwargs)
        logprobs, entropy = ops.linear_logprobs(
            hidden_states,
            gather_head(vocab_weights),
            input_ids.to(torch.int64),
            temperature=float(temperature),
            return_entropy=True,
        )
        return logprobs, entropy


def gather_head(weight: Tensor) -> Tensor:
    """The whole `weight`; its gradient is averaged over the processes, as FSDP averages all others.

    Without a placement for the gradient, DTensor takes that of one process for everybody's.
    """
    if not isinstance(weight, DTensor):
        return weight
    return weight.full_tensor(grad_placements=[Partial("avg")] * weight.device_mesh.ndim)
