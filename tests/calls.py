"""A call of every op in which nothing is wrong and every optional tensor is given, for tests that change one thing."""

from __future__ import annotations

import inspect
from typing import Any

import torch

import fgrl

B, T, D, V = 2, 3, 4, 8

# The first tensor of each op, by which the others are judged.
LEADERS = {
    "token_reward_head": "hidden",
    "edit_preference_loss": "chosen_rewards",
    "gae": "rewards",
    "token_advantages": "values",
    "group_advantages": "token_rewards",
    "whiten": "advantages",
    "ppo_loss": "logprobs",
    "value_loss": "values",
    "linear_logprobs": "hidden",
    "linear_ppo_loss": "hidden",
}
SEQUENCE_OPS = ["gae", "token_advantages", "group_advantages", "ppo_loss", "value_loss", "linear_ppo_loss"]


def good(op: str) -> dict[str, Any]:
    """Valid arguments of an op, every optional tensor of padded batches included."""
    rows = {
        name: torch.randn(B, T)
        for name in ("rewards", "values", "token_rewards", "logprobs", "old_logprobs", "advantages", "ref_logprobs")
    }
    rows |= {name: torch.randn(B, T) for name in ("entropy", "rollout_logprobs", "old_values", "returns")}
    rows |= {"mask": torch.ones(B, T), "bootstrap": torch.zeros(B), "sequence_rewards": torch.zeros(B)}
    rows |= {"chosen_rewards": torch.randn(B, T), "rejected_rewards": torch.randn(B, T)}
    rows |= {name: torch.ones(B, T) for name in ("chosen_edits", "rejected_edits", "chosen_mask", "rejected_mask")}
    rows |= {"hidden": torch.randn(B, T, D), "weight": torch.randn(V, D), "bias": torch.zeros(V)}
    rows |= {"targets": torch.zeros(B, T, dtype=torch.long), "norm_weight": torch.ones(D)}
    if op == "group_advantages":  # whose `rewards` are one a sequence
        rows |= {"rewards": torch.randn(B), "groups": torch.arange(B) // 2, "segment_ids": torch.zeros(B, T).long()}
    wanted = inspect.signature(getattr(fgrl.ops, op)).parameters
    return {name: value for name, value in rows.items() if name in wanted}


def packed(op: str) -> dict[str, Any]:
    """The same with packed tokens; their `cu_seqlens` are left to the test."""
    flat = {name: tensor.reshape(-1) if tensor.shape == (B, T) else tensor for name, tensor in good(op).items()}
    if "hidden" in flat:
        flat["hidden"] = flat["hidden"].reshape(-1, D)
    return flat


def flattened(result: Any) -> list[torch.Tensor]:
    """All tensors of an op's result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in (result.values() if isinstance(result, dict) else result) for tensor in flattened(part)]
