"""`collect_edits`: rows of responses to rows of edited pairs, whatever interrupts it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from fgrl.data.output import check_outputs
from fgrl.data.responses import Response, ResponseReader
from fgrl.data.rows import OnError
from fgrl.data.share import edit_shares
from fgrl.data.writers import JsonlWriter
from fgrl.edits.asking import Answer, Budget, BudgetSpent, EditorUnavailable, Messages, Patience, Refused
from fgrl.edits.checks import Edit, Mode, Rejected, check_edit, parse_object
from fgrl.edits.journal import Journal, question_key
from fgrl.edits.minimise import minimise

Score = Callable[[Any, str], float]
_WINDOW = 8  # rows under way for each request under way: a slow row holds up the writing, not the asking


@dataclass(frozen=True)
class CollectSettings:
    """How edits are collected.

    Attributes:
        mode: "replacements" asks for a list of replacements, "text" for the whole edited response.
        template: The instruction; None for that of the mode. `$guideline` in it is replaced.
        guideline: A rubric that the editor is given.
        max_edit_share: The largest share of the words that an edit may change.
        attempts: Answers to a row at most; each but the first is asked for with the reason against the one before.
        keep_format: Whether changes of white space and markup alone are undone.
        concurrency: Requests under way at a time.
        retries: Repetitions of a request that fails.
        max_wait: Longest wait between them in seconds.
        max_judgements: Questions to the judge about a row at most.
        samples: Responses sampled for each prompt, with a sampler.
    """

    mode: Mode = "replacements"
    template: str | None = None
    guideline: str = ""
    max_edit_share: float = 0.4
    attempts: int = 3
    keep_format: bool = True
    concurrency: int = 8
    retries: int = 6
    max_wait: float = 60.0
    max_judgements: int = 32
    samples: int = 1


@dataclass
class CollectReport:
    """What `collect_edits` did; shares are sums over the rows."""

    rows: int = 0
    unchanged: int = 0
    failed: int = 0
    skipped: int = 0
    asked_again: int = 0
    repeated: int = 0
    resumed: int = 0
    requests: int = 0
    tokens: int = 0
    share: float = 0.0
    share_before: float = 0.0
    reasons: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


def collect_edits(
    source: Any,
    out: str | os.PathLike[str],
    editor: Any,
    *,
    settings: CollectSettings | None = None,
    budget: Budget | None = None,
    judge: Score | str | None = None,
    sampler: Any = None,
    failed: str | os.PathLike[str] | None = None,
    on_error: OnError = "raise",
    columns: Mapping[str, str] | None = None,
    tick: Callable[[CollectReport], None] | None = None,
) -> CollectReport:
    """Ask `editor` to edit every response of `source`, and write the rows to `out` in their order.

    A row keeps its fields and gets `prompt`, `original`, `edited`, `annotator` (the editor), `wrong` (what the editor
    said) and `edit_share`. "Nothing is wrong" is an answer: `edited` is then `original`. A row without an edit to keep
    goes to `failed` with `reason`; it can be given to the same command again.

    Every answer is kept in `<out>.journal` until `out` is complete. After an interrupt, a kill, or a spent budget, the
    same call goes on without asking again what was answered; what was under way is asked again with the same
    `Idempotency-Key`.

    Args:
        source: Rows that `ResponseReader` reads.
        out: Path of the rows, ending in `.jsonl`; it appears when all rows are done.
        editor: A `ServerEditor`, `ModelEditor` or `FunctionEditor`.
        settings: How to ask, and what to keep.
        budget: What the job may spend over all its runs.
        judge: Reduces edits to what matters: "editor" asks the editor, a function scores `(prompt, response)` and a
            part of an edit will do that scores as high as the whole. None leaves edits as they are.
        sampler: An editor that writes the responses first; rows are then prompts.
        failed: Path of the rows without an edit; None for `<out>` with `.failed.jsonl`.
        on_error: "raise" or "skip", for bad rows.
        columns: Where a field is called something else.
        tick: Called with the report after each row.

    Raises:
        BudgetSpent: the budget is spent; the answers are kept.
        EditorUnavailable: nobody answers; the answers are kept.
        ValueError: a bad row, option or journal.
    """
    out = Path(out)
    if out.suffix != ".jsonl":
        raise ValueError(f"out is {os.fspath(out)!r}; it must end in .jsonl")
    rejected = out.with_suffix(".failed.jsonl") if failed is None else Path(failed)
    check_outputs(
        {"out": out, "failed": rejected}, {"source": source if isinstance(source, (str, os.PathLike)) else None}
    )
    reader = _SampleReader(source, on_error=on_error, columns=columns) if sampler else None
    rows = reader or ResponseReader(source, on_error=on_error, columns=columns)
    job = _Job(out, editor, settings or CollectSettings(), budget or Budget(), judge, sampler)
    started = time.monotonic()
    writers = JsonlWriter(out), JsonlWriter(rejected)
    try:
        asyncio.run(job.run(rows, writers, tick))
        writers[0].finish()
        if job.report.failed:
            writers[1].finish()
        job.journal.discard()
    finally:
        for writer in writers:
            writer.close()
        job.journal.close()
        if not job.report.failed:
            JsonlWriter.discard(rejected)
    job.report.skipped, job.report.errors = rows.skipped, rows.errors
    job.report.seconds = time.monotonic() - started
    return job.report


def template_text(name: str) -> str:
    """The instruction template of a mode ("replacements", "text"), or of the judge ("judge")."""
    return files("fgrl.edits").joinpath("templates", f"{name}.txt").read_text(encoding="utf-8")


class _SampleReader(ResponseReader):
    """Prompts whose responses are still to be sampled."""

    def convert(self, row: Any, number: int) -> Response:
        if "original" in row or "response" in row:
            raise ValueError("field 'response' is there; it must be absent where responses are sampled")
        return super().convert({**row, "original": ""}, number)


class _Job:
    """One call: what is under way, and what was found out."""

    def __init__(
        self, out: Path, editor: Any, settings: CollectSettings, budget: Budget, judge: Score | str | None, sampler: Any
    ):
        self.report = CollectReport()
        self.journal = Journal(out.with_name(out.name + ".journal"), budget)
        self.report.resumed = self.journal.resumed
        self._editor, self._sampler, self._judge = editor, sampler, judge
        self._settings, self._budget = settings, budget
        self._mode: Mode = "text" if hasattr(editor, "_function") else settings.mode
        instruction = template_text(self._mode) if settings.template is None else settings.template
        guideline = f"\nGuideline:\n{settings.guideline}\n" if settings.guideline else ""
        self._instruction = Template(instruction).safe_substitute(guideline=guideline)
        self._judging = Template(template_text("judge")).safe_substitute(guideline=guideline)
        self._patience = Patience(retries=settings.retries, max_wait=settings.max_wait)
        self._stopped: BaseException | None = None

    async def run(
        self,
        rows: ResponseReader,
        writers: tuple[JsonlWriter, JsonlWriter],
        tick: Callable[[CollectReport], None] | None,
    ) -> None:
        self._slots = asyncio.Semaphore(self._settings.concurrency)
        pending: deque[asyncio.Task[tuple[bool, dict[str, Any]]]] = deque()

        async def write_first() -> None:
            kept, row = await pending.popleft()
            writers[not kept].write([row])
            if tick is not None:
                self.report.requests, self.report.tokens = self._budget.requests, self._budget.tokens
                tick(self.report)

        for editor in filter(None, (self._editor, self._sampler)):
            await editor.open()
        try:
            for row, nonce in self._numbered(rows):
                pending.append(asyncio.create_task(self._row(row, nonce)))
                await asyncio.sleep(0)
                while pending and (pending[0].done() or len(pending) >= _WINDOW * self._settings.concurrency):
                    await write_first()
            while pending:
                await write_first()
        finally:
            if isinstance(self._stopped, EditorUnavailable):
                for task in pending:
                    task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)  # answers that are under way are paid for
            for editor in filter(None, (self._editor, self._sampler)):
                await editor.close()
            self.report.requests, self.report.tokens = self._budget.requests, self._budget.tokens
            self.report.repeated = self._patience.repeated

    def _numbered(self, rows: ResponseReader) -> Iterator[tuple[Response, int]]:
        """The rows, each as often as it is sampled, with a number that tells equal rows apart."""
        seen: dict[str, int] = {}
        for row in rows:
            key = question_key(row.prompt, row.original, row.better)
            for _ in range(self._settings.samples if self._sampler else 1):
                nonce = seen[key] = seen.get(key, -1) + 1
                yield row, nonce

    async def _row(self, row: Response, nonce: int) -> tuple[bool, dict[str, Any]]:
        """Whether there is an edit to keep, and the row of the output."""
        fields: dict[str, Any] = {"prompt": row.prompt, "original": row.original}
        try:
            if self._sampler is not None:
                prompt = row.prompt
                asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
                sampled = await self._ask(self._sampler, asked, nonce)
                fields["original"] = sampled.text
                row = Response(prompt, sampled.text, row.better, None, row.rest, row.line)
            edit = await self._edit(row, nonce)
            self.report.share_before += edit.share
            edited = await self._minimised(row, edit.edited, nonce)
        except (Rejected, Refused) as error:
            self.report.failed += 1
            if len(self.report.reasons) < 10:
                self.report.reasons.append(f"row {row.line}: {error}")
            better = {} if row.better is None else {"better": row.better}
            return False, {**row.rest, **fields, **better, "reason": str(error)}
        share = edit.share if edited == edit.edited else edit_shares([row.original], [edited])[0]
        self.report.rows += 1
        self.report.share += share
        self.report.unchanged += edited == row.original
        made = {"edited": edited, "annotator": self._editor.name, "wrong": edit.wrong, "edit_share": round(share, 4)}
        return True, {**row.rest, **fields, **made}

    async def _edit(self, row: Response, nonce: int) -> Edit:
        """An edit that is kept; `Rejected` with the last reason where every attempt failed."""
        data: dict[str, Any] = {"prompt": row.prompt, "response": row.original}
        if row.better is not None:
            data["better_response"] = row.better
        question = [
            {"role": "system", "content": self._instruction},
            {"role": "user", "content": json.dumps(data, ensure_ascii=False)},
        ]
        messages, reason = question, Rejected("no attempt was made; attempts must be at least 1")
        for attempt in range(self._settings.attempts):
            answer = await self._ask(self._editor, messages, nonce, attempt)
            try:
                return check_edit(
                    answer,
                    row.original,
                    mode=self._mode,
                    max_edit_share=self._settings.max_edit_share,
                    keep_format=self._settings.keep_format,
                )
            except Rejected as error:
                reason = error
                self.report.asked_again += attempt + 1 < self._settings.attempts
            again = f"This cannot be used: {reason}. Answer again, in the same form."
            messages = [
                *question,
                {"role": "assistant", "content": answer.text[:8000]},
                {"role": "user", "content": again},
            ]
        raise reason

    async def _minimised(self, row: Response, edited: str, nonce: int) -> str:
        if self._judge is None or edited == row.original:
            return edited
        as_good = await self._as_good(row, edited, nonce)
        return await minimise(row.original, edited, as_good, max_judgements=self._settings.max_judgements)

    async def _as_good(self, row: Response, edited: str, nonce: int) -> Callable[[str], Awaitable[bool]]:
        judge = self._judge
        if callable(judge):
            score = judge
            needed = await asyncio.to_thread(score, row.prompt, edited)

            async def scored(text: str) -> bool:
                return bool(await asyncio.to_thread(score, row.prompt, text) >= needed)

            return scored

        async def asked(text: str) -> bool:
            data = json.dumps({"prompt": row.prompt, "full": edited, "partial": text}, ensure_ascii=False)
            messages = [{"role": "system", "content": self._judging}, {"role": "user", "content": data}]
            answer = await self._ask(self._editor, messages, nonce)
            try:
                return parse_object(answer.text).get("as_good") is True
            except Rejected:
                return False  # what cannot be read is no reason to undo anything

        return asked

    async def _ask(self, editor: Any, messages: Messages, nonce: int, attempt: int = 0) -> Answer:
        """The answer of the journal, or of the editor, which is then in the journal."""
        key = question_key(editor.identity, messages, nonce, attempt)
        found = self.journal.find(key)
        if found is not None:
            return found

        async def send() -> Answer:
            if self._stopped is not None:
                raise self._stopped
            self._budget.spend_request()
            self.journal.sent(key)
            return await editor.answer(messages, key)

        async with self._slots:
            try:
                answer = await self._patience.ask(send)
            except (BudgetSpent, EditorUnavailable) as error:
                self._stopped = self._stopped or error
                raise
            self.journal.received(key, answer)
            self._budget.tokens += answer.tokens
            return answer
