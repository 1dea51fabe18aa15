"""Argilla: records as `dataset.records.to_json` writes them, and records and settings for a dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fgrl.data.conversations import check_messages
from fgrl.data.fields import Row, check_text, find_field, kind_name
from fgrl.data.formats.records import ORIGINAL_NAMES, RecordReader, edited_row

ROW = "fgrl_row"  # metadata: what a field of text cannot hold, as JSON
_NO_EDIT = ("draft", "discarded")

SETTINGS: dict[str, Any] = {
    "guidelines": "Change as little as you can to make the response good. Leave it as it is where nothing is wrong.",
    "allow_extra_metadata": True,
    "fields": [
        {"name": "prompt", "title": "Prompt", "required": True, "settings": {"type": "text", "use_markdown": False}},
        {
            "name": "original",
            "title": "Response",
            "required": True,
            "settings": {"type": "text", "use_markdown": False},
        },
    ],
    "questions": [
        {
            "name": "edited",
            "title": "Edited response",
            "required": True,
            "settings": {"type": "text", "use_markdown": False},
        }
    ],
    "metadata": [],
    "vectors": [],
}


class ArgillaReader(RecordReader):
    """Records with one response an annotator to a text question, which a suggestion may have pre-filled.

    The original is the field of that name; a record without one has the suggestion as its original. A response is the
    edited text. Drafts and discarded responses, where a record says so, are no edits.
    """

    def convert(self, row: Row, number: int) -> list[dict[str, Any]]:
        fields = _mapping(row.get("fields"), "fields")
        responses = _mapping(row.get("responses") or {}, "responses")
        suggestions = _mapping(row.get("suggestions") or {}, "suggestions")
        question = self._question(responses, suggestions)
        metadata = dict(_mapping(row.get("metadata") or {}, "metadata"))
        kept = _kept(metadata.pop(ROW, None))
        prompt_name, prompt = self.prompt_of(fields)
        if kept.get("messages") is not None:
            prompt = check_messages(kept["messages"], f"metadata.{ROW}.messages")
        found = find_field(fields, "original", ORIGINAL_NAMES, self.columns)
        if found is not None:
            original = check_text(found[1], f"fields.{found[0]}")
        else:
            original = check_text(_mapping(suggestions.get(question), f"suggestions.{question}").get("value"), question)
        used = (prompt_name, None if found is None else found[0])
        rest = {str(name): value for name, value in fields.items() if name not in used}
        rest |= {str(name): value for name, value in metadata.items()}
        rest |= _mapping(kept.get("rest") or {}, f"metadata.{ROW}.rest")
        if row.get("id") is not None:
            rest.setdefault("id", row["id"])
        answers = responses.get(question) or []
        if not isinstance(answers, list):
            raise ValueError(f"field {'responses.' + question!r} is {kind_name(answers)}; it must be a list")
        if not answers:
            self.pass_over("not annotated")
        rows = []
        for index, answer in enumerate(answers):
            where = f"responses.{question}[{index}]"
            answer = _mapping(answer, where)
            annotator = None if answer.get("user_id") is None else str(answer["user_id"])
            if answer.get("status") in _NO_EDIT or (len(answers) == 1 and row.get("status") in _NO_EDIT):
                self.pass_over("drafts or discarded")
            elif self.wants(annotator):
                edited = check_text(answer.get("value"), f"{where}.value")
                rows.append(edited_row(prompt, original, edited, annotator=annotator, rest=rest))
        return rows

    def _question(self, responses: Mapping[str, Any], suggestions: Mapping[str, Any]) -> str:
        if "edited" in self.columns:
            return self.columns["edited"]
        names = sorted({*responses, *suggestions})
        if len(names) > 1 and "edited" in names:
            return "edited"
        if len(names) > 1:
            raise ValueError(
                f"field 'responses' has {len(names)} questions ({', '.join(names)}); it must have one, which the "
                "column of 'edited' can name"
            )
        return names[0] if names else "edited"


def _mapping(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"field {field!r} is {kind_name(value)}; it must be an object")
    return value


def _kept(value: Any) -> Mapping[str, Any]:
    """What `record` put into the metadata."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"field {'metadata.' + ROW!r} is no JSON ({error}); it must be what was exported") from error
    return {} if value is None else _mapping(value, f"metadata.{ROW}")


def record(prompt: Any, shown: str, original: str, prefill: str, rest: Mapping[str, Any]) -> dict[str, Any]:
    """A record for a dataset with `SETTINGS`, the text question filled with `prefill`."""
    kept = {"rest": rest} if isinstance(prompt, str) else {"rest": rest, "messages": prompt}
    metadata = {ROW: json.dumps(kept, ensure_ascii=False)} if rest or "messages" in kept else {}
    return {
        "id": None if rest.get("id") is None else str(rest["id"]),
        "fields": {"prompt": shown, "original": original},
        "metadata": metadata,
        "suggestions": {"edited": {"value": prefill, "score": None, "agent": None}},
        "responses": {},
        "vectors": {},
    }
