"""Chat messages: checking them, and joining the turns of a prompt with those in front of a response."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fgrl.data.fields import check_text, kind_name

Message = dict[str, Any]

# What an assistant says besides its content. Only the content is aligned and scored, so that these cannot be ignored.
_SPEECH = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal", "audio")


def check_messages(value: Any, field: str) -> list[Message]:
    """`value` if it is a list of chat messages; `ValueError` naming `field` otherwise."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"field {field!r} is {kind_name(value)}; it must be text or a non-empty list of messages")
    for index, message in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(message, Mapping):
            raise ValueError(f"field {where!r} is {kind_name(message)}; it must be a message with 'role' and 'content'")
        check_text(message.get("role"), f"{where}.role")
        if message.get("content") is not None or not (message.get("tool_calls") or message.get("function_call")):
            check_text(message.get("content"), f"{where}.content")
    return value


def check_prompt(value: Any, field: str) -> str | list[Message]:
    """`value` if it is text or a list of chat messages; `ValueError` naming `field` otherwise."""
    return check_messages(value, field) if isinstance(value, list) else check_text(value, field)


def check_tools(value: Any, field: str) -> list[Any] | None:
    """The tools of a conversation: a list of JSON schemas, or that list as JSON text; None without tools."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"field {field!r} is text; it must be a list of tools, as JSON ({error})") from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise ValueError(f"field {field!r} is {kind_name(value)}; it must be a list of tools, each an object")
    return value


def split_response(messages: Any, field: str) -> tuple[list[Message], str]:
    """The messages in front of the last turn, and the text of that turn, which must be the assistant's.

    Raises:
        ValueError: these are no messages, the last is somebody else's, or it says more than its text.
    """
    *turns, last = check_messages(messages, field)
    where = f"{field}[{len(turns)}]"
    if last["role"] != "assistant":
        raise ValueError(f"field {where + '.role'!r} is {last['role']!r}; it must be 'assistant' in the last message")
    for name in _SPEECH:
        if last.get(name):
            raise ValueError(
                f"field {where + '.' + name!r} is given; it must be absent: only text is aligned and scored"
            )
    return turns, check_text(last.get("content"), f"{where}.content")


def join_turns(prompt: list[Message], turns: list[Message], field: str) -> list[Message]:
    """`prompt` and then `turns`, the messages that `field` has in front of its response.

    `turns` may continue the prompt, repeat it, or repeat its end; messages that are in both are there once.

    Raises:
        ValueError: `turns` can do neither, as they begin with a system message or with the role the prompt ends in.
    """
    if not prompt or not turns or turns[-len(prompt) :] == prompt:
        return turns or prompt
    for shared in range(min(len(prompt), len(turns)), 0, -1):
        if prompt[-shared:] == turns[:shared]:
            return prompt + turns[shared:]
    before, after = prompt[-1]["role"], turns[0]["role"]
    if after in ("system", "developer") or (before == after and after != "tool"):
        raise ValueError(
            f"field {field!r} is a conversation that begins with another {after!r} message than its prompt, "
            f"which ends in a {before!r} message; it must continue the prompt or repeat it"
        )
    return prompt + turns
