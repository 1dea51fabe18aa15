"""Asking an editor: what an answer is, the budget, and how failures of a server are met."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """What an editor said.

    Attributes:
        text: The answer.
        tokens: Tokens of question and answer together, as the server counts them.
        complete: False where a length limit cut the answer.
    """

    text: str
    tokens: int = 0
    complete: bool = True


class Editor(Protocol):
    """Answers messages.

    Attributes:
        name: What rows say their annotator is.
    """

    name: str

    async def answer(self, messages: Messages, key: str) -> Answer:
        """The answer; `key` is the same when the same question is asked again (an idempotency key)."""


class EditorUnavailable(RuntimeError):
    """Nobody can answer: the run ends, and the same command continues it later."""


class BudgetSpent(RuntimeError):
    """No further request may be sent."""


class Refused(ValueError):
    """A request that the server will never answer, such as one that is too long."""


class Failed(RuntimeError):
    """A request that failed and may be sent again.

    Attributes:
        wait: Seconds the server asks to wait; None where it says nothing.
    """

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


@dataclass
class Budget:
    """What a job may spend, over all runs of the same command.

    Attributes:
        max_requests: Requests that are sent; None for no limit.
        max_tokens: Tokens of answered requests; those under way may exceed it.
        requests, tokens: Spent so far.
    """

    max_requests: int | None = None
    max_tokens: int | None = None
    requests: int = 0
    tokens: int = 0

    def spend_request(self) -> None:
        """Count a request that is about to be sent.

        Raises:
            BudgetSpent: there is none left.
        """
        if self.max_requests is not None and self.requests >= self.max_requests:
            raise BudgetSpent(f"the budget of {self.max_requests:,} requests is spent")
        if self.max_tokens is not None and self.tokens >= self.max_tokens:
            raise BudgetSpent(f"the budget of {self.max_tokens:,} tokens is spent")
        self.requests += 1


class Patience:
    """Repeats requests that failed, with exponential back-off, and gives up when nothing has worked for long.

    A server's own waiting time (`retry-after`) is kept, and holds up every request, since a limit of rates is common to
    all of them.

    Args:
        retries: Failures in a row of one request before it is given up.
        first_wait: Seconds before the first repetition; doubled each time, up to `max_wait`, and drawn from the upper
            half so that requests do not come back together.
        max_wait: Longest wait in seconds, also where the server asks for more.
    """

    def __init__(self, *, retries: int = 6, first_wait: float = 0.5, max_wait: float = 60.0):
        self.retries, self.first_wait, self.max_wait = retries, first_wait, max_wait
        self.repeated = 0
        self._not_before = 0.0
        self._successes = 0
        self._random = random.Random(0)

    async def ask(self, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of `send`, repeated where it raises `Failed`.

        Raises:
            Refused: this request fails again and again while others succeed.
            EditorUnavailable: all requests do.
        """
        before = self._successes
        for failures in range(self.retries + 1):
            while (pause := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            try:
                result = await send()
            except Failed as error:
                if failures == self.retries:
                    message = f"{error} ({failures + 1} times)"
                    if self._successes == before:
                        raise EditorUnavailable(message) from error
                    raise Refused(message) from error
                self.repeated += 1
                await self._pause(failures, error.wait)
            else:
                self._successes += 1
                return result
        raise AssertionError

    async def _pause(self, failures: int, asked: float | None) -> None:
        if asked is not None:
            self._not_before = max(self._not_before, time.monotonic() + min(asked, self.max_wait))
            return
        wait = min(self.first_wait * 2**failures, self.max_wait)
        await asyncio.sleep(wait * self._random.uniform(0.5, 1.0))


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    for text, unit in ((milliseconds, 1000.0), (value, 1.0)):
        try:
            seconds = float(text) / unit if text is not None else -1.0
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0) if value is not None else None
    except (ValueError, TypeError):
        return None
