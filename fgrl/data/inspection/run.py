"""`inspect_edits`: batches go to worker processes, and what only the whole stream can decide is decided here."""

from __future__ import annotations

import multiprocessing
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import Any

from fgrl.data.inspection.measure import GroupedReader, Measurer, prompt_keys
from fgrl.data.inspection.sketches import FrequentItems, SeenBefore
from fgrl.data.inspection.summary import Agreement, Summary
from fgrl.data.prompts import read_prompts
from fgrl.data.rows import RawRow

_BATCH = 512
_REMEMBERED = 4096  # responses whose annotators may still be compared
_SHOWN_REPLACEMENTS = 25
_MAX_ANNOTATORS = 8
Watch = Callable[[Iterator[RawRow]], Iterator[RawRow]]
_measure: Measurer


def inspect_edits(
    source: Any,
    *,
    tokenizer: Any = None,
    max_length: int = 1024,
    max_edit_share: float = 0.5,
    group_by: Sequence[str] = ("source", "annotator"),
    held_out: Any = None,
    columns: Mapping[str, str] | None = None,
    workers: int = 1,
    watch: Watch | None = None,
) -> Summary:
    """Count what may be wrong with edited pairs, in one pass whose memory does not depend on how many there are.

    Duplicates and prompts that are held out are found with Bloom filters (`SeenBefore`), the most frequent replacements
    with Misra and Gries' counters, and annotators of one response are compared where their rows are within some
    thousand responses of each other, as `import_edits` writes them. The result is the same for any number of workers.

    Args:
        source: What `read_pairs` takes.
        tokenizer: A `transformers` tokenizer, for lengths in tokens, edits that truncation loses, and how tokens widen
            edits; None counts words alone.
        max_length: Longest prompt plus response in tokens.
        max_edit_share: An edit of a larger share of the words is a rewrite.
        group_by: Fields by whose values shares are told apart.
        held_out: Rows with prompts that must not be among those of `source`; what `read_prompts` takes.
        columns: Where a field is called something else.
        workers: Processes that measure; 1 measures in this one.
        watch: Gets the raw rows and returns them again (a progress bar).

    Returns:
        The counts; bad rows are counted in `bad`, and the messages of the first are in `errors`.

    Raises:
        ValueError: Unknown suffix or option.
        FileNotFoundError: There is no such file.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    reader = GroupedReader(source, group_by, columns=columns)
    measurer = Measurer(reader, max_edit_share=max_edit_share, tokenizer=tokenizer, max_length=max_length)
    stream = _Stream(max_edit_share)
    if held_out is not None:
        stream.hold_out(held_out)
    rows = reader.raw_rows()
    rows = rows if watch is None else watch(rows)
    batches = iter(lambda: list(islice(rows, _BATCH)), [])
    for batch in _measured(measurer, batches, workers):
        stream.add(batch)
    return stream.finish()


def _measured(measurer: Measurer, batches: Iterator[list[RawRow]], workers: int) -> Iterator[Summary]:
    """The summaries of the batches, in order; a few batches are under way at a time."""
    if workers == 1:
        yield from map(measurer, batches)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    with context.Pool(workers, _start, (measurer,)) as pool:
        pending: deque[Any] = deque()
        for batch in batches:
            pending.append(pool.apply_async(_work, (batch,)))
            if len(pending) > 3 * workers:
                yield pending.popleft().get()
        while pending:
            yield pending.popleft().get()


def _start(measurer: Measurer) -> None:
    global _measure
    import torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    _measure = measurer


def _work(batch: list[RawRow]) -> Summary:
    return _measure(batch)


class _Stream:
    """The summary of all batches so far, and what the rows so far say about the next ones."""

    def __init__(self, max_edit_share: float) -> None:
        self._result = Summary(max_edit_share=max_edit_share)
        self._pairs, self._near = SeenBefore(), SeenBefore()
        self._held_out: SeenBefore | None = None
        self._replacements = FrequentItems()
        self._agreement = Agreement()
        self._responses: OrderedDict[int, list[tuple[str, bytes]]] = OrderedDict()

    def hold_out(self, source: Any) -> None:
        self._held_out = SeenBefore()
        reader = read_prompts(source)
        rows = reader.raw_rows()
        while batch := list(islice(rows, _BATCH)):
            for key in prompt_keys(reader, batch):
                self._held_out.add(key)

    def add(self, batch: Summary) -> None:
        result = self._result
        result.merge(batch)
        self._replacements.update(batch.replacements)
        held_out = self._held_out
        keys = zip(batch.lines, batch.pair_keys, batch.near_keys, batch.prompt_keys, strict=True)
        for line, pair, near, prompt in keys:
            near_seen = self._near.add(near)
            if self._pairs.add(pair):
                result.duplicates += 1
                result.example("duplicates", line)
            elif near_seen:
                result.near_duplicates += 1
                result.example("near duplicates", line)
            if held_out is not None and prompt in held_out:
                result.leaked += 1
                result.example("held-out prompts", line)
        for key, annotator, flags in batch.annotations:
            self._compare(key, annotator, flags)

    def _compare(self, key: int, annotator: str, flags: bytes) -> None:
        seen = self._responses.setdefault(key, [])
        self._responses.move_to_end(key)
        if len(seen) < _MAX_ANNOTATORS and all(annotator != other for other, _ in seen):
            seen.append((annotator, flags))
        if len(self._responses) > _REMEMBERED:
            self._settle(self._responses.popitem(last=False)[1])

    def _settle(self, annotations: list[tuple[str, bytes]]) -> None:
        if len(annotations) > 1:
            self._agreement.responses += 1
            for (_, one), (_, other) in combinations(sorted(annotations), 2):
                self._agreement.add(one, other)

    def finish(self) -> Summary:
        while self._responses:
            self._settle(self._responses.popitem(last=False)[1])
        result = self._result
        result.frequent = self._replacements.most_common(_SHOWN_REPLACEMENTS)
        result.frequent_error = self._replacements.error
        result.agreement = self._agreement if self._agreement.responses else None
        result.strange.sort(reverse=True)
        return result
