"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch

from benchmarks import end_to_end, machine, results, runner, tables, timing
from benchmarks.registry import SUITES, registry

DEFAULT_OUT = Path("build/benchmarks")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure fgrl beside what people use.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="ops, their shapes and peers")
    for name, summary in (
        ("run", "check and time the ops, and print a table of each"),
        ("scale", "time and memory against sizes and threads"),
        ("step", "one PPO update step of a decoder"),
        ("pairs", "edit alignment at every length and rate of edits"),
    ):
        command = commands.add_parser(name, help=summary)
        command.add_argument("--suite", choices=SUITES, help="default: gpu where there is one, else cpu")
        command.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help=f"default {DEFAULT_OUT}")
        command.add_argument("--device", type=torch.device, help="default: the suite's")
        command.add_argument("--threads", type=int, metavar="N", help="of PyTorch on a CPU; default: its own")
        if name in ("run", "scale"):
            command.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after so many")
            command.add_argument("--ops", nargs="+", default=[], choices=list(registry()), metavar="OP")
    command = commands.add_parser("compare", help="exit with 1 where NEW is slower than OLD beyond the noise")
    command.add_argument("old", type=Path)
    command.add_argument("new", type=Path)
    command = commands.add_parser("plot", help="figures of a result")
    command.add_argument("results", type=Path, nargs="?", default=DEFAULT_OUT)
    command.add_argument("--out", type=Path, help="folder of the figures; default: that of the results")
    command = commands.add_parser("keep", help="copy a result to benchmarks/results/, its figures to docs/")
    command.add_argument("results", type=Path, nargs="?", default=DEFAULT_OUT)
    commands.add_parser("report", help="write the tables of README.md and docs/ from benchmarks/results/")
    return COMMANDS[(args := parser.parse_args(arguments)).command](args)


def _run(args: argparse.Namespace) -> int:
    suite, device = _where(args)
    found = runner.run(suite, args.ops, device, args.out, args.seconds)
    print(f"\nresults in {args.out / 'results.json'}")
    return 0 if runner.is_right(found) else 1


def _scale(args: argparse.Namespace) -> int:
    from benchmarks import scale

    suite, device = _where(args)
    found = scale.run(suite, args.ops, device, args.seconds)
    _update(args.out, suite, device, scale=found)
    return 0


def _step(args: argparse.Namespace) -> int:
    suite, device = _where(args)
    found = end_to_end.run(suite, device)
    print(end_to_end.conditions(found))
    print(tables.text(end_to_end.table(found)))
    _update(args.out, suite, device, end_to_end=found)
    return 0 if found["variants"]["fgrl"]["status"] == "ok" else 1


def _pairs(args: argparse.Namespace) -> int:
    from benchmarks import align_edits

    suite, device = _where(args)
    _update(args.out, suite, device, align_edits=align_edits.run(quick=suite in ("tiny", "quick")))
    return 0


def _update(out: Path, suite: str, device: torch.device, **parts: object) -> None:
    path = out / "results.json"
    if not path.exists():
        parts = {"suite": suite, "environment": machine.describe(device), **parts}
    results.update(path, **parts)


def _where(args: argparse.Namespace) -> tuple[str, torch.device]:
    if args.threads:
        torch.set_num_threads(args.threads)
    suite = args.suite or ("gpu" if torch.cuda.is_available() else "cpu")
    return suite, args.device or torch.device("cuda" if suite == "gpu" else "cpu")


def _compare(args: argparse.Namespace) -> int:
    old, new = results.load(args.old), results.load(args.new)
    changes = results.compare(old, new)
    rows = [
        [
            change.row,
            "" if change.ratio is None else f"{change.ratio:.2f}",
            f"{100 * change.noise:.0f} %",
            change.verdict,
        ]
        for change in changes
    ]
    print(tables.text(tables.Table(["case", "new/old", "noise", ""], rows, [])))
    if (before := timing.processor(old["environment"])) != (now := timing.processor(new["environment"])):
        print(f"measured on different devices: {before}, {now}")
    return 1 if any(change.verdict.startswith("regression") for change in changes) else 0


def _plot(args: argparse.Namespace) -> int:
    from benchmarks import plots

    folder = args.results if args.results.is_dir() else args.results.parent
    for path in plots.draw(results.load(args.results), args.out or folder):
        print(path)
    return 0


def _keep(args: argparse.Namespace) -> int:
    from benchmarks import plots

    found = results.load(args.results)
    target = results.COMMITTED / results.file_name(found)
    shutil.copyfile(args.results / "results.json" if args.results.is_dir() else args.results, target)
    print(target, *plots.draw(found, results.COMMITTED.parents[1] / "docs"), sep="\n")
    return 0


def _report(args: argparse.Namespace) -> int:
    from benchmarks import report

    report.update()
    return 0


def _list(args: argparse.Namespace) -> int:
    for name, op in registry().items():
        print(f"{name}: beside {', '.join(('PyTorch', 'torch.compile', *op.peers))}")
        for suite, shapes in op.shapes.items():
            print(f"  {suite}: {'; '.join(shape.label for shape in shapes) or 'nothing'}")
    return 0


COMMANDS = {
    "list": _list,
    "run": _run,
    "scale": _scale,
    "step": _step,
    "pairs": _pairs,
    "compare": _compare,
    "plot": _plot,
    "keep": _keep,
    "report": _report,
}

if __name__ == "__main__":
    sys.exit(main())
