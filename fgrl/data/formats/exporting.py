"""`export_tasks`: responses as tasks of an annotation tool, with what it needs to show them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fgrl.data.formats import argilla, label_studio
from fgrl.data.output import check_outputs, open_output_folder
from fgrl.data.responses import Response, ResponseReader, prompt_text
from fgrl.data.rows import OnError

EXPORT_FORMATS = {
    "label-studio": (label_studio.task, "tasks.json", "labeling_config.xml", label_studio.CONFIG),
    "argilla": (argilla.record, "records.json", "settings.json", json.dumps(argilla.SETTINGS, indent=2) + "\n"),
}
Watch = Callable[[Iterator[Response]], Iterable[Response]]


@dataclass
class ExportReport:
    """What `export_tasks` did.

    Attributes:
        tasks: Tasks written.
        files: Names of the files in the folder: the tasks, and the tool's configuration.
        skipped: Bad rows.
        errors: Messages of the first of them.
    """

    tasks: int = 0
    files: tuple[str, str] = ("", "")
    skipped: int = 0
    errors: list[str] = field(default_factory=list)


def export_tasks(
    format: str,
    source: Any,
    out: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    on_error: OnError = "raise",
    watch: Watch | None = None,
) -> ExportReport:
    """Write the responses of `source` as tasks into the folder `out`, with the tool's configuration.

    The text to edit begins as the response, or as the edit that a row already has. `import_edits` reads the annotated
    tasks back into the same prompts (messages too), originals and other fields.

    Args:
        format: One of `EXPORT_FORMATS`: "label-studio" writes `tasks.json` and `labeling_config.xml`, "argilla"
            `records.json` (`dataset.records.from_json`) and `settings.json` (`rg.Settings.from_json`).
        source: Rows that `ResponseReader` reads.
        out: The folder; existing files of these names are replaced once both are complete.
        columns: Where a field is called something else.
        on_error: "raise" or "skip".
        watch: Gets the rows and returns them again (a progress bar).

    Raises:
        ValueError: Unknown format, or a bad row (`RowError`).
        FileNotFoundError: There is no such file.
    """
    if format not in EXPORT_FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(EXPORT_FORMATS)}")
    make, tasks_name, config_name, config = EXPORT_FORMATS[format]
    reader = ResponseReader(source, on_error=on_error, columns=columns)
    names = {name: os.path.join(out, name) for name in (tasks_name, config_name)}
    check_outputs(names, {"source": source if isinstance(source, (str, os.PathLike)) else None})
    report = ExportReport(files=(tasks_name, config_name))
    with open_output_folder(out) as folder:
        (folder / config_name).write_text(config, encoding="utf-8")
        with open(folder / tasks_name, "wb") as file:
            rows = iter(reader)
            for row in rows if watch is None else watch(rows):
                try:
                    prefill = row.original if row.edited is None else row.edited
                    made = make(row.prompt, prompt_text(row.prompt), row.original, prefill, _rest(row))
                except ValueError as error:
                    reader.fail(row.line, error)
                    continue
                file.write(b",\n" if report.tasks else b"[\n")
                file.write(json.dumps(made).encode())
                report.tasks += 1
            file.write(b"\n]\n" if report.tasks else b"[]\n")
    report.skipped, report.errors = reader.skipped, reader.errors
    return report


def _rest(row: Response) -> dict[str, Any]:
    """The row's other fields; who made its edit is no longer the annotator."""
    rest = {("suggested_by" if name == "annotator" else name): value for name, value in row.rest.items()}
    return rest if row.better is None else {**rest, "better": row.better}
