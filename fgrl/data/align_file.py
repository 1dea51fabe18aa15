"""Align a file of edited pairs into a file of labels: streaming, and continuing after an interrupt."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fgrl.data.aligner import AlignedPair, EditUnit, ResponseAligner
from fgrl.data.output import check_outputs, write_text
from fgrl.data.pairs import EditedPair, read_pairs
from fgrl.data.rows import OnError, RawRow, RowError
from fgrl.data.tokens import HuggingFaceTokenizer, PlainTokenizer, TextTokenizer
from fgrl.data.writers import JsonlWriter, ParquetWriter, Record, Writer

_MAX_BATCH_CHARACTERS = 1 << 20
_FORMAT = 1
Watch = Callable[[Iterator[RawRow], int], Iterator[RawRow]]


@dataclass
class AlignReport:
    """What `align_file` did.

    Attributes:
        pairs: Pairs in the output, those of earlier interrupted runs included.
        tokens: Their tokens, both sides.
        skipped: Bad rows passed over, in all runs.
        errors: Messages of the first of them.
        resumed_pairs: Pairs that earlier runs had written.
        resumed_tokens: Their tokens.
        seconds: Time this run took.
    """

    pairs: int = 0
    tokens: int = 0
    skipped: int = 0
    errors: list[str] = field(default_factory=list)
    resumed_pairs: int = 0
    resumed_tokens: int = 0
    seconds: float = 0.0

    @property
    def pairs_per_second(self) -> float:
        """Pairs this run aligned per second."""
        return (self.pairs - self.resumed_pairs) / max(self.seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Tokens, of both sides, that this run aligned per second."""
        return (self.tokens - self.resumed_tokens) / max(self.seconds, 1e-9)


def align_file(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    tokenizer_name: str = "plain",
    edit_unit: EditUnit = "token",
    on_error: OnError = "raise",
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
    batch_size: int = 256,
    watch: Watch | None = None,
) -> AlignReport:
    """Align every pair of `source` and write its labels to `out`, at constant memory.

    A record of the output has `line`, `prompt` (with all turns), `original`, `edited`, `error_spans` and any `tools`,
    so that the output can be read as pairs again, and

    - `distance`; `opcodes`: difflib-style `[tag, i1, i2, j1, j2]` in tokens (structures in Parquet);
    - for each side `*_tokens`, `*_offsets` (characters), `*_ids` (with a Hugging Face tokenizer), `*_labels`
      (`fgrl.EditOp` codes) and `*_edits` (1 where a token counts as edited, widened when `edit_unit` is "word");
    - `original_errors`: 1 where a human error span touches the token, null without spans.

    Progress is kept next to `out` (`<out>.state.json`, and `<out>.partial` or `<out>.parts`) until `out` is complete;
    then only `out` remains. Calling again after an interrupt, a crash or a bad row continues where the last checkpoint
    was, without a row lost or doubled. The rows already done must still be the same (a digest is compared); rows after
    them may have been repaired or added.

    Args:
        source: A file that `read_pairs` reads.
        out: Path ending in `.jsonl` or `.parquet`.
        tokenizer: A `transformers` tokenizer; None splits into words and punctuation marks.
        tokenizer_name: What a later call must be given as well in order to continue.
        edit_unit: "token" or "word".
        on_error: "raise" stops at the first bad row, "skip" passes over bad rows and counts them.
        columns: Names of columns, as in `read_pairs`.
        overwrite: Whether to start over instead of continuing, and to replace `out` once the new one is complete.
        batch_size: Pairs that are aligned at once.
        watch: Called with the remaining raw rows and how many went before; returns them again (a progress bar).

    Raises:
        ValueError: A bad row (`RowError`), an unknown suffix, or an earlier run that cannot be continued.
        FileExistsError: `out` exists and `overwrite` is False.
        FileNotFoundError: There is no such source.
    """
    source, out = Path(source), Path(out)
    if out.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"out is {os.fspath(out)!r}; it must end in .jsonl or .parquet")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    reader = read_pairs(source, on_error=on_error, columns=columns)
    check_outputs({"out": out}, {"source": source})
    out = Path(os.path.realpath(out))
    _check_names(source, out)
    text_tokenizer: TextTokenizer = PlainTokenizer() if tokenizer is None else HuggingFaceTokenizer(tokenizer)
    options = {
        "format": _FORMAT,
        "tokenizer": tokenizer_name,
        "edit_unit": edit_unit,
        "columns": dict(columns or {}),
    }
    align = ResponseAligner(text_tokenizer, edit_unit=edit_unit)
    run = _Run(out, options, overwrite)
    started = time.monotonic()
    try:
        rows = run.remaining(reader.raw_rows())
        rows = watch(rows, run.rows) if watch is not None else rows
        pending: list[EditedPair] = []
        size = 0
        for row in rows:
            try:
                pair = reader.read(row)
            except RowError:
                run.add(align(pending), text_tokenizer)
                run.checkpoint()
                raise
            if pair is not None:
                pending.append(pair)
                size += len(pair.original) + len(pair.edited)
            run.count(row, reader.skipped, reader.errors)
            if len(pending) >= batch_size or size >= _MAX_BATCH_CHARACTERS:
                run.add(align(pending), text_tokenizer)
                run.checkpoint_if_due()
                pending, size = [], 0
        run.add(align(pending), text_tokenizer)
        run.finish()
    finally:
        run.close()
    run.report.seconds = time.monotonic() - started
    return run.report


class _Run:
    """Output and progress of one call; the state file names what the output's checkpoint covers."""

    def __init__(self, out: Path, options: Mapping[str, Any], overwrite: bool):
        self._options = options
        self._state = out.with_name(out.name + ".state.json")
        self._kind: type[ParquetWriter] | type[JsonlWriter] = ParquetWriter if out.suffix == ".parquet" else JsonlWriter
        self.report = AlignReport()
        self.rows = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._expected = self._digest.hexdigest()
        self._last = time.monotonic()
        self._skipped_before, self._errors_before = 0, list[str]()
        state = None
        if overwrite:
            self._state.unlink(missing_ok=True)
            self._kind.discard(out)
        elif self._state.exists():
            state = self._load(out)
        self._replaces = overwrite or bool(state and state.get("replaces"))
        if out.exists() and not self._replaces:
            raise FileExistsError(f"out is {os.fspath(out)!r}, which exists already; it must be new, or overwritten")
        out.parent.mkdir(parents=True, exist_ok=True)
        self._writer: Writer = self._kind(out, None if state is None else state["output"])
        if out.exists():
            self.checkpoint()  # a run without `overwrite` continues this one; `out` stays until it is complete

    def _load(self, out: Path) -> dict[str, Any]:
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            if state["options"] != self._options:
                raise ValueError(
                    f"the options are {dict(self._options)}; they must be those of the interrupted run into "
                    f"{os.fspath(out)!r}, {state['options']}, unless it is overwritten"
                )
            self.report = AlignReport(**state["report"])
            self.rows, self._expected = state["rows"], state["digest"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{self._state} is no state of an alignment; it must be one, unless the run is overwritten"
            ) from error
        self.report.resumed_pairs, self.report.resumed_tokens = self.report.pairs, self.report.tokens
        self._skipped_before, self._errors_before = self.report.skipped, self.report.errors
        return dict(state)

    def remaining(self, rows: Iterator[RawRow]) -> Iterator[RawRow]:
        """Pass over the rows that earlier runs have done, after comparing their digest."""
        for _ in range(self.rows):
            row = next(rows, None)
            if row is None:
                break
            self._digest.update(row.fingerprint + b"\n")
        if self._digest.hexdigest() != self._expected:
            raise ValueError(
                f"source is changed in the {self.rows} rows that the interrupted run has done; they must be the same, "
                "unless it is overwritten"
            )
        return rows

    def count(self, row: RawRow, skipped: int, errors: list[str]) -> None:
        """Note that `row` was read; it is done once the pairs so far are added."""
        self.rows += 1
        self._digest.update(row.fingerprint + b"\n")
        self.report.skipped = self._skipped_before + skipped
        self.report.errors = [*self._errors_before, *errors][:10]

    def add(self, aligned: list[AlignedPair], tokenizer: TextTokenizer) -> None:
        self._writer.write(_record(pair, tokenizer) for pair in aligned)
        self.report.pairs += len(aligned)
        self.report.tokens += sum(len(pair.original.ids) + len(pair.edited.ids) for pair in aligned)

    def checkpoint_if_due(self) -> None:
        if self._writer.full or time.monotonic() - self._last >= self._writer.interval:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Make the output durable first, then the state that covers it, which is replaced as a whole."""
        output = self._writer.checkpoint()
        state = {
            "options": self._options,
            "rows": self.rows,
            "digest": self._digest.hexdigest(),
            "report": asdict(self.report),
            "output": output,
            "replaces": self._replaces,
        }
        write_text(self._state, json.dumps(state))
        self._last = time.monotonic()

    def finish(self) -> None:
        self.checkpoint()
        self._writer.finish()
        self._state.unlink()

    def close(self) -> None:
        with suppress(OSError):
            self._writer.close()


def _check_names(source: Path, out: Path) -> None:
    """Raise `ValueError` where `out` is a folder, or `source` has the name of a file that the run keeps beside it."""
    if out.is_dir():
        raise ValueError(f"out is {os.fspath(out)!r}, a folder; it must be a file")
    place = Path(os.path.realpath(source))
    beside = [out.with_name(out.name + ending) for ending in (".state.json", ".partial", ".parts")]
    if place in beside or place.parent in beside:
        raise ValueError(f"source is {os.fspath(source)!r}, a name that the run itself uses; it must be another one")


def _record(aligned: AlignedPair, tokenizer: TextTokenizer) -> Record:
    pair = aligned.pair
    spans = None if pair.error_spans is None else [{"start": start, "end": end} for start, end in pair.error_spans]
    record: Record = {
        "line": pair.line,
        "prompt": pair.prompt,
        "original": pair.original,
        "edited": pair.edited,
        "error_spans": spans,
        "distance": aligned.distance,
        "opcodes": aligned.opcodes,
        **({} if pair.tools is None else {"tools": pair.tools}),
        "original_errors": None if aligned.original_errors is None else [int(flag) for flag in aligned.original_errors],
    }
    for side, text, tokens, labels, edits in (
        ("original", pair.original, aligned.original, aligned.original_labels, aligned.original_edits),
        ("edited", pair.edited, aligned.edited, aligned.edited_labels, aligned.edited_edits),
    ):
        record[f"{side}_tokens"] = tokenizer.pieces(text, tokens)
        if isinstance(tokenizer, HuggingFaceTokenizer):
            record[f"{side}_ids"] = tokens.ids
        record[f"{side}_offsets"] = tokens.offsets
        record[f"{side}_labels"] = labels
        record[f"{side}_edits"] = [int(flag) for flag in edits]
    return record
