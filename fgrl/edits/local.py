"""Editors in this process: a Python function, and a Hugging Face model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from threading import Lock
from typing import Any

from fgrl.edits.asking import Answer, Messages, Refused


class FunctionEditor:
    """A function `(prompt, response) -> edited response`; it runs in threads, several at a time.

    Args:
        function: The editor. The response itself says that nothing is wrong.
        name: What rows say their annotator is.
    """

    def __init__(self, function: Callable[[Any, str], str], name: str):
        self._function = function
        self.name = name

    @property
    def identity(self) -> dict[str, Any]:
        """What makes an answer another one, apart from the messages."""
        return {"function": self.name}

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def answer(self, messages: Messages, key: str) -> Answer:
        """The edited response, in the form of the mode "text"."""
        row = json.loads(messages[1]["content"])
        edited = await asyncio.to_thread(self._function, row["prompt"], row["response"])
        if not isinstance(edited, str):
            raise Refused(f"{self.name} returned a {type(edited).__name__}; it must return the edited response")
        wrong = "nothing" if edited == row["response"] else "what the function changed"
        return Answer(f"WRONG: {wrong}\nTEXT:\n{edited}")


class ModelEditor:
    """A Hugging Face causal model with a chat template; it answers one question at a time.

    A model without a template for system messages gets the instruction in front of the user's message.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        name: What rows say their annotator is.
        max_tokens: Longest answer in tokens.
        temperature: Of sampling; 0 takes the likeliest token.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, *, max_tokens: int = 512, temperature: float = 0.0):
        self._model, self._tokenizer = model, tokenizer
        self._lock = Lock()
        self._options = {"max_tokens": max_tokens, "temperature": temperature}
        self.name = name

    @property
    def identity(self) -> dict[str, Any]:
        """What makes an answer another one, apart from the messages."""
        return {"model": self.name, **self._options}

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def answer(self, messages: Messages, key: str) -> Answer:
        """What the model generates."""
        return await asyncio.to_thread(self._generate, messages, int(key[:8], 16))

    def _generate(self, messages: Messages, seed: int) -> Answer:
        import torch

        from fgrl.data import PromptEncoder

        encode = PromptEncoder(self._tokenizer)
        plain = len(messages) == 1 and not getattr(self._tokenizer, "chat_template", None)
        try:
            ids = encode([messages[0]["content"] if plain else messages])[0]
        except ValueError:
            system, user, *rest = messages
            ids = encode([[{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]])[0]
        temperature = self._options["temperature"]
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        with self._lock, torch.no_grad():
            torch.manual_seed(seed)
            start = torch.tensor([ids], device=self._model.device)
            output = self._model.generate(
                start,
                attention_mask=torch.ones_like(start),
                max_new_tokens=int(self._options["max_tokens"]),
                pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
                **sampling,
            )[0, len(ids) :]
        text = self._tokenizer.decode(output, skip_special_tokens=True)
        return Answer(text, len(ids) + len(output), len(output) < self._options["max_tokens"])
