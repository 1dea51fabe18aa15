"""The demo from end to end: prose, mistakes, edits, two reward models, two policies, a report."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from fgrl.data.output import open_output_folder
from fgrl.demo.config import DemoConfig
from fgrl.demo.jobs import Job, JobRunner

POLICIES = ("start", "sequence", "fine_grained")
_PAIR_PARTS = 2
_PACKAGES = ("fgrl", "torch", "transformers", "tokenizers", "accelerate", "codespell")


def run_demo(
    config: DemoConfig, folder: str | Path, on_progress: Callable[[str, float], None] | None = None
) -> dict[str, Any]:
    """Run the demo and write everything into `folder`.

    Args:
        config: what to run.
        folder: gets `report.html`, `report.json`, the edited pairs, and a folder for each model in the Hugging Face
            layout. Created if missing; files of an earlier run are replaced when this one is complete.
        on_progress: told the stage and the share of it that is done.

    Returns:
        The content of `report.json`.

    Raises:
        RuntimeError: this Python lacks `pydoc_data.topics`, or codespell is not installed.
    """
    started = time.perf_counter()
    clock = _Clock(on_progress)
    with open_output_folder(folder) as draft, JobRunner(config.workers, clock.job_share) as runner:
        return _run(config, draft, runner, clock, started)


def _run(config: DemoConfig, folder: Path, runner: JobRunner, clock: _Clock, started: float) -> dict[str, Any]:
    runner.start("fgrl.demo.stages")  # while this process imports the same
    from fgrl.demo import evaluate, stages
    from fgrl.demo.page import write_page
    from fgrl.demo.report import SHOWN_SAMPLES, build_report, write_json
    from fgrl.demo.samples import score_samples

    def both(function: Callable[..., Any], *choices: Any) -> list[Any]:
        return runner.run([Job(function, (config, folder, choice)) for choice in choices])

    with clock.stage("prose and tokenizer"):
        (corpus,) = runner.run([Job(stages.tokenizer_stage, (config, folder))])
    with clock.stage("pre-training"):
        pretraining = dict(
            zip(("start", "clean_prose_model"), both(stages.pretrain_stage, stages.START, stages.JUDGE), strict=True)
        )
    with clock.stage("sampling and editing"):
        parts = [Job(stages.pairs_stage, (config, folder, part, _PAIR_PARTS)) for part in range(_PAIR_PARTS)]
        pairs: list[dict[str, str]] = [{}] * config.reward.pairs
        for part, rows in enumerate(runner.run(parts)):
            pairs[part::_PAIR_PARTS] = rows
        held = config.reward.heldout_pairs
        stages.write_pairs(folder / stages.HELDOUT_PAIRS, pairs[:held])
        stages.write_pairs(folder / stages.TRAIN_PAIRS, pairs[held:])
    with clock.stage("reward models"):
        rewards = dict(zip(("token", "sequence"), both(stages.reward_stage, "token", "sequence"), strict=True))
    with clock.stage("PPO"):
        ppo = dict(zip(("fine_grained", "sequence"), both(stages.ppo_stage, "token", "sequence"), strict=True))
    with clock.stage("evaluation"):
        names = (stages.START, stages.policy_folder("sequence"), stages.policy_folder("token"), evaluate.HUMAN)
        judged = dict(zip((*POLICIES, evaluate.HUMAN), both(evaluate.judge_stage, *names), strict=True))
        responses = {name: judged[name].responses[:SHOWN_SAMPLES] for name in POLICIES}
        (samples,) = runner.run([Job(score_samples, (config, folder, responses))])
    report = build_report(
        config=asdict(config),
        corpus=corpus,
        pretraining=pretraining,
        pairs=len(pairs),
        rewards=rewards,
        ppo=ppo,
        judged=judged,
        versions={"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        stages=clock.seconds,
        seconds=time.perf_counter() - started,
    )
    write_json(folder / "report.json", report)
    write_page(folder / "report.html", report, samples)
    return report


class _Clock:
    """Times the stages and passes progress on."""

    def __init__(self, on_progress: Callable[[str, float], None] | None) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress = on_progress
        self._stage = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._stage = name
        self._show(0.0)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self._show(1.0)

    def job_share(self, share: float) -> None:
        """A stage is not done before its last line is."""
        self._show(min(share, 0.99))

    def _show(self, share: float) -> None:
        if self._on_progress is not None:
            self._on_progress(self._stage, share)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
