"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

REGISTRY = {"align_edits": "edit alignment against rapidfuzz, python-Levenshtein and difflib"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure fgrl against what people use.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names of the benchmarks")
    run = commands.add_parser("run", help="run benchmarks and print their tables")
    run.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {', '.join(REGISTRY)}")
    run.add_argument("--quick", action="store_true", help="fewer cells and rounds")
    run.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    commands.add_parser("readme", help="write the README's tables and figure from benchmarks/results/")
    args = parser.parse_args()
    if args.command == "readme":
        from benchmarks import readme

        readme.update()
        return 0
    if args.command == "list":
        for name, summary in REGISTRY.items():
            print(f"{name}: {summary}")
        return 0
    if unknown := sorted(set(args.names) - set(REGISTRY)):
        parser.error(f"unknown benchmark {unknown[0]!r}; choose from {', '.join(REGISTRY)}")
    results = {name: import_module(f"benchmarks.{name}").run(quick=args.quick) for name in args.names or REGISTRY}
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
