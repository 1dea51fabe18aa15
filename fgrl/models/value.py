"""The value model of PPO."""

from __future__ import annotations

from fgrl.models.scalar import TokenScalarModel


class ValueModel(TokenScalarModel):
    """State values for PPO, of the same structure as `TokenRewardModel`.

    `forward` returns values `[B, T]`, fp32: entry `t` is V of the state *after* token `t` (it has read token `t`). V of
    the state before token `t`, which `fgrl.ops.token_advantages` wants, is therefore entry `t - 1`. A new head starts
    at 0, so that the first advantages are those of the rewards alone.

    Example:
        >>> model = ValueModel.from_backbone(policy)  # a copy of the policy's backbone  # doctest: +SKIP
        >>> before = model(input_ids, attention_mask)[:, :-1]  # V before tokens 1, 2, ...  # doctest: +SKIP
    """
