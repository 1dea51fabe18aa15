"""Hugging Face models with one scalar a token: the token reward model and the value model of PPO.

`import fgrl.models` imports torch only; transformers is imported with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgrl.models.attention import resolve_attention
    from fgrl.models.causal import load_causal_lm
    from fgrl.models.head import HiddenStates, hidden_states_and_head
    from fgrl.models.loading import load_tokenizer
    from fgrl.models.reward import TokenRewardModel
    from fgrl.models.scalar import TokenHead, TokenScalarModel
    from fgrl.models.token_reward_head import TokenRewardHead
    from fgrl.models.value import ValueModel

_HOMES = {
    "HiddenStates": "fgrl.models.head",
    "TokenHead": "fgrl.models.scalar",
    "TokenRewardHead": "fgrl.models.token_reward_head",
    "TokenRewardModel": "fgrl.models.reward",
    "TokenScalarModel": "fgrl.models.scalar",
    "ValueModel": "fgrl.models.value",
    "hidden_states_and_head": "fgrl.models.head",
    "load_causal_lm": "fgrl.models.causal",
    "load_tokenizer": "fgrl.models.loading",
    "resolve_attention": "fgrl.models.attention",
}

__all__ = [
    "HiddenStates",
    "TokenHead",
    "TokenRewardHead",
    "TokenRewardModel",
    "TokenScalarModel",
    "ValueModel",
    "hidden_states_and_head",
    "load_causal_lm",
    "load_tokenizer",
    "resolve_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fgrl.models' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
