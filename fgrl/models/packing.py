"""Whether a backbone keeps packed sequences apart."""

from __future__ import annotations

from torch import nn

from fgrl.models.adapters import unwrapped
from fgrl.models.batches import learn_batches
from fgrl.models.loading import scalar_head


def check_packing(model: nn.Module) -> None:
    """Raise unless packed sequences with restarting position ids give in `model` what they give alone.

    Some architectures ignore position ids (ALiBi) or carry a state along (linear attention); packed batches would then
    be wrong without a sign. A few tokens tell, once a model; see `fgrl.models.batches`.

    Args:
        model: a token-classification model with one label, wrapped (DDP, PEFT) or not.

    Raises:
        ValueError: a sequence sees the other one.
    """
    inner = unwrapped(model)
    if not learn_batches(inner, scalar_head(inner)).packed:
        raise ValueError(
            f"packed is True, but {type(inner.base_model).__name__} does not keep packed sequences apart; it must be "
            "False for this backbone"
        )
