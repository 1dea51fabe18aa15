"""The token reward model."""

from __future__ import annotations

from fgrl.models.scalar import TokenScalarModel


class TokenRewardModel(TokenScalarModel):
    """Rewards of single tokens, `r_t = w . h_t + b`, learned from minimal edits.

    `forward` returns rewards `[B, T]`, fp32: entry `t` is the reward of token `t`, read from the hidden state *at*
    token `t`. Source: Xu et al., "Aligning Large Language Models via Fine-grained Supervision", arXiv 2406.02756.

    Example:
        >>> model = TokenRewardModel.from_pretrained("HuggingFaceTB/SmolLM2-135M")  # doctest: +SKIP
        >>> rewards = model(input_ids, attention_mask)  # doctest: +SKIP
        >>> model.save_pretrained("reward-model")  # loads with AutoModelForTokenClassification  # doctest: +SKIP
    """
