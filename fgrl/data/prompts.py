"""Prompts: reading them, and turning text or chat messages into token ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from fgrl.data.conversations import Message, check_prompt, check_tools
from fgrl.data.fields import Row, check_columns, find_field, missing_field
from fgrl.data.rows import OnError, RowReader, encode_rows

Prompt = str | list[Message]
_ALIASES = ("question",)


class PromptEncoder:
    """Prompts to token ids, with the special tokens a prompt starts with and none at its end.

    Text gets the tokens that the tokenizer itself puts in front (BOS, for tokenizers that add one), never twice when
    the text already starts with them, and none behind. Messages go through the chat template with the generation
    prompt added (a final assistant message is continued instead); the template alone decides about BOS then.

    Args:
        tokenizer: A `transformers.PreTrainedTokenizerBase`.
        max_length: Longest prompt in tokens; longer ones lose tokens from the left, except the ones the tokenizer
            puts in front. None keeps everything.
        chat_template: Jinja template to use instead of the tokenizer's own.

    Example:
        >>> encode = PromptEncoder(tokenizer)  # doctest: +SKIP
        >>> encode(["Once upon", [{"role": "user", "content": "Hi"}]])  # doctest: +SKIP
        [[6403, 2923], [1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198]]
    """

    def __init__(self, tokenizer: Any, *, max_length: int | None = None, chat_template: str | None = None):
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length is {max_length}; it must be at least 1, or None")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.chat_template = chat_template
        self._prefix = _leading_special_tokens(tokenizer)

    def __call__(self, prompts: Sequence[Prompt], tools: Sequence[list[Any] | None] | None = None) -> list[list[int]]:
        """Encode a batch, in order; `tools` are those of each prompt, which the chat template gets."""
        if not prompts:
            return []
        texts = [
            prompt if isinstance(prompt, str) else self.render(prompt, some)
            for prompt, some in zip(prompts, tools or [None] * len(prompts), strict=True)
        ]
        encoded = _encode(self.tokenizer, texts, special=False)
        result = []
        for prompt, ids in zip(prompts, encoded, strict=True):
            if isinstance(prompt, str) and ids[: len(self._prefix)] != self._prefix:
                ids = self._prefix + ids
            result.append(ids if self.max_length is None else self.truncate(ids, self.max_length))
        return result

    def render(self, messages: list[Message], tools: list[Any] | None = None) -> str:
        """The text of chat messages, up to where the response starts.

        Raises:
            ValueError: There is no chat template, or it refuses the messages.
        """
        if self.chat_template is None and not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                "chat_template is missing; it must be given, as the prompt is messages and the tokenizer has none"
            )
        prefill = messages[-1]["role"] == "assistant"
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=not prefill,
                continue_final_message=prefill,
            )
        except Exception as error:
            raise ValueError(
                f"field 'prompt' is refused by the chat template ({error}); it must be messages that it takes"
            ) from error

    def truncate(self, ids: list[int], length: int) -> list[int]:
        """Drop tokens from the left until `length` are left; the tokenizer's leading special tokens stay in front."""
        if len(ids) <= length:
            return ids
        head = self._prefix if ids[: len(self._prefix)] == self._prefix and length > len(self._prefix) else []
        return head + ids[len(ids) - (length - len(head)) :]


class PromptReader(RowReader[dict[str, Any]]):
    """Iterates over the prompts of a source; see `read_prompts`."""

    def __init__(self, source: Any, *, on_error: OnError = "raise", columns: Mapping[str, str] | None = None):
        check_columns(columns, ("prompt",))
        super().__init__(source, on_error=on_error, columns=columns)

    def convert(self, row: Row, number: int) -> dict[str, Any]:
        found = find_field(row, "prompt", _ALIASES, self.columns)
        if found is None:
            raise ValueError(missing_field(row, "prompt", self.columns))
        name, prompt = found
        if "prompt_ids" in row:
            raise ValueError("field 'prompt_ids' is in the row; it must have another name, as the tokens have this one")
        rest = {key: value for key, value in row.items() if key not in (name, "prompt")}
        return {"prompt": check_prompt(prompt, name), **rest}


def read_prompts(
    source: str | os.PathLike[str] | Iterable[Row],
    *,
    on_error: OnError = "raise",
    columns: Mapping[str, str] | None = None,
) -> PromptReader:
    """Read prompts from `source`, streaming: rows as dictionaries with `prompt` and the row's other columns.

    Args:
        source: As in `fgrl.data.read_pairs`; a row has `prompt` (or `question`), text or chat messages.
        on_error: "raise" stops at the first bad row, "skip" passes over bad rows and counts them.
        columns: Where the field is called something else: `{"prompt": "instruction"}`.

    Returns:
        A reader that can be iterated over again, with `.source`, `.skipped` and `.errors`.

    Raises:
        ValueError: Unknown suffix or option; while iterating, a bad row (`RowError`).
        FileNotFoundError: There is no such file.

    Example:
        >>> list(read_prompts([{"question": "Sky?", "answer": "blue"}]))
        [{'prompt': 'Sky?', 'answer': 'blue'}]
    """
    return PromptReader(source, on_error=on_error, columns=columns)


class PromptDataset(Sequence[dict[str, Any]]):
    """Tokenized prompts in memory, for PPO: map-style, each item a dictionary.

    An item has `prompt_ids` (list of int, truncated from the left), `prompt` (as read) and the row's other columns,
    which reach reward functions as keyword arguments.

    Args:
        source: What `read_prompts` takes, or a `PromptReader`.
        tokenizer: A `transformers.PreTrainedTokenizerBase`.
        max_prompt_length: Longest prompt in tokens; None keeps everything.
        chat_template: Jinja template to use instead of the tokenizer's own.
        on_error: "raise" or "skip", as in `read_prompts`.
        columns: As in `read_prompts`.

    Raises:
        ValueError: A bad row; a prompt without tokens (nothing to generate from), or messages that the chat template
            refuses, make a row bad too.
    """

    def __init__(
        self,
        source: Any,
        tokenizer: Any,
        *,
        max_prompt_length: int | None = None,
        chat_template: str | None = None,
        on_error: OnError = "raise",
        columns: Mapping[str, str] | None = None,
    ):
        reader = (
            source if isinstance(source, PromptReader) else read_prompts(source, on_error=on_error, columns=columns)
        )
        encode = PromptEncoder(tokenizer, max_length=max_prompt_length, chat_template=chat_template)

        def encode_some(rows: list[dict[str, Any]]) -> list[list[int]]:
            tools = [
                check_tools(row.get("tools"), "tools") if isinstance(row["prompt"], list) else None for row in rows
            ]
            encoded = encode([row["prompt"] for row in rows], tools)
            if not all(encoded):
                raise ValueError("field 'prompt' is empty; it must have a token to generate from")
            return encoded

        rows = reader.numbered()
        self._rows: list[dict[str, Any]] = []
        while batch := list(islice(rows, 256)):
            self._rows += [{**row, "prompt_ids": ids} for row, ids in encode_rows(reader, encode_some, batch)]
        self.skipped = reader.skipped
        self.errors = reader.errors

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)


def _encode(tokenizer: Any, texts: list[str], *, special: bool) -> list[list[int]]:
    encoded = tokenizer(
        texts, add_special_tokens=special, truncation=False, padding=False, return_attention_mask=False, verbose=False
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _leading_special_tokens(tokenizer: Any) -> list[int]:
    """Token ids that the tokenizer puts in front of every text."""
    bare, full = (_encode(tokenizer, ["a"], special=special)[0] for special in (False, True))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []
