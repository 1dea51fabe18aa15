"""An editor behind an OpenAI-compatible server, through the `openai` client."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any
from urllib.parse import urlsplit

from fgrl.edits.asking import Answer, EditorUnavailable, Failed, Messages, Refused, asked_wait

_AGAIN = (408, 409, 425, 429)
_NOBODY = (401, 403, 404)


class ServerEditor:
    """Asks `POST /chat/completions`; every failure says whether it may be asked again.

    Args:
        url: The server's base URL, such as `http://localhost:8000/v1`.
        model: Its model; None asks the server, which must then have one.
        key_variable: The environment variable that holds the key. It is sent to the server, and never written or shown.
        timeout: Seconds for a whole answer, whatever arrives in between.
        temperature: Of sampling.
        max_tokens: Longest answer in tokens; None leaves it to the server.

    Raises:
        ImportError: the `openai` client is not installed.
        ValueError: the URL is none, or carries a name, a password or a query, which would end up in files.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        temperature: float = 0.0,
        max_tokens: int | None = None,
    ):
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                "openai is missing; it must be installed for a server (pip install 'fgrl[edit]')"
            ) from error
        parts = urlsplit(url)
        if not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
            shown = f"{parts.scheme}://{parts.hostname or ''}"
            raise ValueError(f"url begins with {shown!r}; it must be a server's, without a name, a password or a query")
        self._openai = openai
        self._url = url
        self._key = os.environ.get(key_variable) or "none"
        self._client: Any = None
        self._timeout = timeout
        self._options = {"temperature": temperature, **({} if max_tokens is None else {"max_tokens": max_tokens})}
        self.name = model or ""

    @property
    def identity(self) -> dict[str, Any]:
        """What makes an answer another one, apart from the messages."""
        return {"model": self.name, **self._options}

    async def open(self) -> None:
        """Connect, and find the model where none was named.

        Raises:
            EditorUnavailable: the server has no model, or more than one, or cannot be reached.
        """
        self._client = self._openai.AsyncOpenAI(
            base_url=self._url, api_key=self._key, max_retries=0, timeout=self._timeout
        )
        if self.name:
            return
        try:
            found = await self._client.models.list()
            names = [model.id for model in found.data]
        except Exception as error:
            raise EditorUnavailable(f"the server's models cannot be listed: {self._said(error)}") from error
        if len(names) != 1:
            raise EditorUnavailable(f"the server has {len(names)} models ({', '.join(names[:8])}); one must be named")
        self.name = names[0]

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def answer(self, messages: Messages, key: str) -> Answer:
        """The answer to `messages`.

        Raises:
            Failed: it may be asked again.
            Refused: this question will never be answered.
            EditorUnavailable: no question will.
        """
        openai = self._openai
        try:
            raw = await asyncio.wait_for(
                self._client.chat.completions.with_raw_response.create(
                    model=self.name, messages=messages, extra_headers={"Idempotency-Key": key}, **self._options
                ),
                self._timeout,
            )
            body = raw.text
        except openai.APIStatusError as error:
            status, said = error.status_code, f"the server answers {error.status_code}: {self._said(error)}"
            if status in _NOBODY:
                raise EditorUnavailable(said) from error
            if status in _AGAIN or status >= 500:
                raise Failed(said, asked_wait(error.response.headers)) from error
            raise Refused(said) from error
        except (asyncio.TimeoutError, openai.APITimeoutError) as error:
            raise Failed(f"the server does not answer within {self._timeout:g} s") from error
        except openai.OpenAIError as error:
            raise Failed(f"the connection fails: {self._said(error)}") from error
        return _completion(body)

    def _said(self, error: BaseException) -> str:
        """What an error says, in one line of bounded length and without the key."""
        cause = error.__cause__
        text = " ".join(f"{error}{f' ({cause})' if cause is not None and str(cause) else ''}".split())
        return (text.replace(self._key, "***") if self._key != "none" else text)[:300]


def _completion(body: str) -> Answer:
    """The answer in the body of a chat completion; `Failed` where there is none."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        text = choice["message"]["content"]
        usage = found.get("usage") or {}
        tokens = usage.get("total_tokens")
        if not isinstance(text, str):
            raise TypeError("content is not text; it must be")
        if not isinstance(tokens, int) or isinstance(tokens, bool):
            tokens = len(body) // 4  # a server that does not count
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        shown = " ".join(body[:60].split())
        raise Failed(f"the server's answer is no chat completion ({shown!r})") from error
    return Answer(text, max(tokens, 0), choice.get("finish_reason") != "length")
