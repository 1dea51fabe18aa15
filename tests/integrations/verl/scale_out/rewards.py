"""Rewards of the runs: how often the letter that is asked for comes, for the response or token by token."""

from __future__ import annotations

from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    return sum(letter == ground_truth for letter in solution_str) / 8.0


def token_rewards(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> list[float]:
    """`token % 5 - 1.5`: of every token another, and none is 0."""
    return [token % 5 - 1.5 for token in extra_info["response_ids"]]
