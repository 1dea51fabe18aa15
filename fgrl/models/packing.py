"""Whether a backbone keeps packed sequences apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fgrl.models.scalar import takes_position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_packing(model: PreTrainedModel) -> None:
    """Raise unless packed sequences with restarting position ids do not attend to each other in `model`.

    Some architectures ignore position ids (ALiBi) or carry a state along (linear attention); packed batches would then
    be wrong without a sign. Two tiny forward passes tell: the states of the second sequence must not move when the
    first one changes.

    Raises:
        ValueError: the second sequence sees the first.
    """
    base = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    if not takes_position_ids(model) or _leaks(base):
        raise ValueError(
            f"packed is True, but {type(base).__name__} does not keep packed sequences apart; it must be False for "
            "this backbone"
        )


@torch.no_grad()
def _leaks(base: PreTrainedModel) -> bool:
    device = next(base.parameters()).device
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2]], device=device)

    def second_sequence(first: list[int]) -> Tensor:
        input_ids = torch.tensor([[*first, 1, 2, 3]], device=device)
        states: Tensor = base(input_ids=input_ids, position_ids=position_ids, use_cache=False)[0]
        return states[0, 3:].float()

    was_training = base.training
    base.eval()
    try:
        before, after = second_sequence([1, 2, 3]), second_sequence([3, 1, 1])
    finally:
        base.train(was_training)
    return not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
