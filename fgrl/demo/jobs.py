"""Stages that do not need each other run at the same time, each in a process with one thread."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

_POLL_SECONDS = 0.5
_MOST_JOBS = 16

_shares: Any = None  # in a worker: the share done of each job, shared with the parent


class Job(NamedTuple):
    """A call of a module-level function: `function(*arguments, tick)`, where `tick` takes the share that is done."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class JobRunner:
    """Runs groups of jobs; a context manager that ends its processes.

    How many processes there are changes the time, not the results: every job has one thread and random numbers of its
    own.

    Args:
        workers: processes; 1 runs everything in this one.
        on_progress: told the share of a group that is done, from time to time.
    """

    def __init__(self, workers: int, on_progress: Callable[[float], None] | None = None) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        self._workers = workers
        self._on_progress = on_progress
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._shares: Any = context.Array("d", _MOST_JOBS)
            self._pool = ProcessPoolExecutor(workers, context, initializer=_initialize, initargs=(self._shares,))

    def __enter__(self) -> JobRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def start(self, module: str) -> None:
        """Start the processes and let them import `module`; does not wait for them."""
        if self._pool is not None:
            for _ in range(self._workers):
                self._pool.submit(_import, module)

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        """The results of `jobs`, in their order; an error of a job is raised here."""
        if len(jobs) > _MOST_JOBS:
            raise ValueError(f"jobs holds {len(jobs)}; it must hold at most {_MOST_JOBS}")
        if self._pool is None:
            return self._run_here(jobs)
        self._shares[:] = [0.0] * _MOST_JOBS
        futures: list[Future[Any]] = [self._pool.submit(_call, i, job) for i, job in enumerate(jobs)]
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_POLL_SECONDS)
            if any(future.exception() for future in done):
                break
            self._report(sum(self._shares[: len(jobs)]) / len(jobs))
        return [future.result() for future in futures]

    def _run_here(self, jobs: Sequence[Job]) -> list[Any]:
        with _one_quiet_thread():
            return [job.function(*job.arguments, partial(self._report_one, i, len(jobs))) for i, job in enumerate(jobs)]

    def _report_one(self, index: int, jobs: int, share: float) -> None:
        self._report((index + share) / jobs)

    def _report(self, share: float) -> None:
        if self._on_progress is not None:
            self._on_progress(share)


def _initialize(shares: Any) -> None:
    global _shares
    _shares = shares
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(1)
    _silence()


def _import(module: str) -> None:
    importlib.import_module(module)


def _call(index: int, job: Job) -> Any:
    def tick(share: float) -> None:
        _shares[index] = share

    result = job.function(*job.arguments, tick)
    tick(1.0)
    return result


@contextmanager
def _one_quiet_thread() -> Iterator[None]:
    """One thread and no messages of transformers in this process, for as long as it lasts."""
    import torch
    from transformers.utils import logging

    threads, verbosity, bars = torch.get_num_threads(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    _silence()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _silence() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
