"""Label Studio: its JSON export, with a text area that was pre-filled with the response; and tasks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fgrl.data.conversations import check_messages
from fgrl.data.fields import Row, check_text, find_field, kind_name
from fgrl.data.formats.records import ORIGINAL_NAMES, PROMPT_NAMES, RecordReader, edited_row

# What `export_tasks` shows beside the fields: the prompt as text, and what the text area begins with.
SHOWN_PROMPT, PREFILL, MESSAGES = "prompt_text", "prefill", "messages"

CONFIG = """<View>
  <Header value="Prompt"/>
  <Text name="prompt" value="$prompt_text"/>
  <Header value="Response"/>
  <Text name="response" value="$original"/>
  <Header value="Change as little as you can to make the response good. Leave it as it is where nothing is wrong."/>
  <TextArea name="edited" toName="response" value="$prefill" editable="true" maxSubmissions="1" rows="8"
            required="true" requiredMessage="The edited response is missing"/>
</View>
"""


class LabelStudioReader(RecordReader):
    """Tasks of a JSON export: one row for each annotation that was submitted.

    `data` of a task holds prompt and response. The text area is the only one of the annotation, or the one that the
    column of `edited` names. Its text is the edited response, whether the annotator changed it or not.
    """

    def convert(self, row: Row, number: int) -> list[dict[str, Any]]:
        data = row.get("data")
        if not isinstance(data, Mapping):
            raise ValueError(
                f"field 'data' is {'missing' if 'data' not in row else kind_name(data)}; it must be the task's object "
                "of fields, as in the JSON export (JSON-MIN has none)"
            )
        annotations = row.get("annotations")
        if not isinstance(annotations, list):
            raise ValueError(f"field 'annotations' is {kind_name(annotations)}; it must be a list")
        original_name, original = self.found(data, "original", ORIGINAL_NAMES)
        original = check_text(original, f"data.{original_name}")
        prompt_name, prompt = self.prompt_of(data)
        if data.get(MESSAGES) is not None:
            prompt = check_messages(data[MESSAGES], f"data.{MESSAGES}")
        used = (original_name, prompt_name, SHOWN_PROMPT, PREFILL, MESSAGES)
        rest = {str(name): value for name, value in data.items() if name not in used}
        if row.get("id") is not None:
            rest.setdefault("id", row["id"])
        rows = []
        for index, annotation in enumerate(annotations):
            where = f"annotations[{index}]"
            if not isinstance(annotation, Mapping):
                raise ValueError(f"field {where!r} is {kind_name(annotation)}; it must be an object")
            annotator = _annotator(annotation.get("completed_by"), f"{where}.completed_by")
            if annotation.get("was_cancelled"):
                self.pass_over("skipped by the annotator")
            elif self.wants(annotator):
                edited = self._text(annotation.get("result"), f"{where}.result")
                rows.append(edited_row(prompt, original, edited, annotator=annotator, rest=rest))
        if not annotations:
            self.pass_over("not annotated")
        return rows

    def _text(self, result: Any, where: str) -> str:
        """The text of the annotation's text area."""
        if not isinstance(result, list):
            raise ValueError(f"field {where!r} is {kind_name(result)}; it must be a list of results")
        areas = [item for item in result if isinstance(item, Mapping) and item.get("type") == "textarea"]
        wanted = self.columns.get("edited")
        if wanted is not None:
            areas = [item for item in areas if item.get("from_name") == wanted]
        if len(areas) != 1:
            names = ", ".join(sorted({str(item.get("from_name")) for item in areas}))
            called = f" called {wanted!r}" if wanted is not None else f" ({names})" if names else ""
            raise ValueError(
                f"field {where!r} has {len(areas)} text areas{called}; it must have one, which the column of 'edited' "
                "can name"
            )
        value = areas[0].get("value")
        text = value.get("text") if isinstance(value, Mapping) else None
        if isinstance(text, list) and len(text) != 1:
            raise ValueError(f"field {where + '.value.text'!r} has {len(text)} texts; it must have one")
        return check_text(text[0] if isinstance(text, list) else text, f"{where}.value.text")


def _annotator(value: Any, field: str) -> str | None:
    """The name of an annotator: an id, or the e-mail address or id of a user."""
    if isinstance(value, Mapping):
        found = find_field(value, "email", ("username", "id"), {})
        value = None if found is None else found[1]
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
        raise ValueError(f"field {field!r} is {kind_name(value)}; it must be a user or the id of one")
    return None if value is None else str(value)


def task(prompt: Any, shown: str, original: str, prefill: str, rest: Mapping[str, Any]) -> dict[str, Any]:
    """A task to import into a project with `CONFIG`."""
    data = {"prompt": shown, SHOWN_PROMPT: shown, "original": original, PREFILL: prefill}
    if not isinstance(prompt, str):
        data[MESSAGES] = prompt
    clash = next((name for name in rest if name in (*data, MESSAGES, *PROMPT_NAMES, *ORIGINAL_NAMES)), None)
    if clash is not None:
        raise ValueError(f"field {clash!r} is in the row besides; it must have another name, as the task has it")
    return {"data": {**data, **rest}}
