"""The journal of a job: every answer that was received, so that no question is paid for twice."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fgrl.data.output import json_line
from fgrl.edits.asking import Answer, Budget


class Journal:
    """Answers by the key of their question, in a file of JSON lines that only grows.

    A line is written with one call before anything is done with it, so that a process that is killed at any moment has
    lost only the answers that were still under way; a line that was cut is ignored and written over. Memory holds the
    place of each answer, not the answer.

    A question's key covers everything that is sent, so that another instruction, model or row is another question.
    """

    def __init__(self, path: Path, budget: Budget):
        self.path = path
        self.resumed = 0
        self._budget = budget
        self._places: dict[bytes, tuple[int, int]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        at = 0
        with open(self.path, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                    if "answer" in entry:
                        self._places[bytes.fromhex(entry["key"])] = (at, len(line))
                        self._budget.tokens += entry["tokens"]
                        self.resumed += 1
                    else:
                        self._budget.requests += 1
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{self.path} is no journal of collected edits; it must be one, or be moved away"
                    ) from error
                at += len(line)
        self._file.truncate(at)

    def find(self, key: str) -> Answer | None:
        """The answer that was received to a question; None where there is none."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        entry = json.loads(os.pread(self._file.fileno(), place[1], place[0]))
        return Answer(entry["answer"], entry["tokens"], entry["complete"])

    def sent(self, key: str) -> None:
        """Note that a question is about to be sent."""
        self._write({"key": key})

    def received(self, key: str, answer: Answer) -> None:
        """Note an answer."""
        line = {"key": key, "answer": answer.text, "tokens": answer.tokens, "complete": answer.complete}
        self._places[bytes.fromhex(key)] = self._write(line)

    def _write(self, entry: dict[str, Any]) -> tuple[int, int]:
        line = json_line(entry)
        at = self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        return at, len(line)

    def close(self) -> None:
        """Release the file; it stays for the next run."""
        self._file.close()

    def discard(self) -> None:
        """Remove the file: the job is done."""
        self.close()
        self.path.unlink(missing_ok=True)


def question_key(*parts: Any) -> str:
    """The key of a question: 32 hexadecimal digits of everything that it consists of."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
