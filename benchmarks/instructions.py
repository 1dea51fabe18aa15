"""Counts the instructions of the C++ headers on fixed inputs and compares them with the committed counts.

    python benchmarks/instructions.py [--update]

Times on shared machines are noise; instruction counts are not. They do not see caches, so what a change is worth is for
`python -m benchmarks compare` to say; that it made the compiler emit twice the work shows here. Counts belong to a
compiler: with another one than the committed counts name, they are printed and not judged. Needs valgrind and a C++
compiler, and neither torch nor an installation.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
DRIVERS = sorted((HERE / "csrc").glob("*.cpp"))
BASELINE = HERE / "results" / "instructions.json"
FLAGS = ("-std=c++20", "-O3", "-DNDEBUG", f"-I{HERE.parent / 'csrc'}")
TOLERANCE = 0.02
ISAS = ("baseline", "avx2")


def compiler() -> str | None:
    """The C++ compiler, or None."""
    return os.environ.get("CXX") or shutil.which("c++")


def why_not() -> str:
    """Why nothing can be counted here, or ""."""
    if compiler() is None:
        return "there is no C++ compiler"
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if not _has_avx2():
        return "this processor has no AVX2, which half of the counts need"
    return ""


def count() -> dict[str, int]:
    """Instructions of each work of each driver on each instruction set."""
    with TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        drivers = list(pool.map(lambda source: _build(source, Path(folder)), DRIVERS))
        tasks = [(driver, name, isa) for driver in drivers for name in _works(driver) for isa in ISAS]
        counts = pool.map(lambda task: _count_one(*task), tasks)
        return {f"{name}, {isa}": found for (_, name, isa), found in zip(tasks, counts, strict=True)}


def version() -> str:
    """What the counts belong to."""
    command = [str(compiler()), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def judge(counts: dict[str, int], expected: dict[str, int]) -> list[str]:
    """What is wrong, one sentence each: more instructions than the tolerance allows, or works that do not match."""
    complaints = [f"{name}: no committed count" for name in counts if name not in expected]
    for name, before in expected.items():
        now = counts.get(name)
        if now is None:
            complaints.append(f"{name}: not counted any more")
        elif now > (1 + TOLERANCE) * before:
            complaints.append(f"{name}: {now} instructions, {100 * (now / before - 1):.1f} % more than {before}")
    return complaints


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Instruction counts of csrc/ on fixed inputs.")
    parser.add_argument("--update", action="store_true", help="commit to the counts of now")
    args = parser.parse_args(arguments)
    if reason := why_not():
        print(f"instruction counts skipped: {reason}")
        return 0
    counts = count()
    committed = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {"counts": {}}
    for name, now in counts.items():
        before = committed["counts"].get(name)
        print(f"{name:45} {now:12d}" + (f"  {100 * (now / before - 1):+.2f} %" if before else ""))
    if args.update:
        BASELINE.write_text(json.dumps({"compiler": version(), "counts": counts}, indent=1) + "\n", encoding="utf-8")
        return 0
    if (theirs := committed.get("compiler")) != version():
        print(f"not judged: the committed counts are of {theirs}, these of {version()}")
        return 0
    complaints = judge(counts, committed["counts"])
    print(*complaints, sep="\n")
    return 1 if complaints else 0


def _build(source: Path, folder: Path) -> Path:
    driver = folder / source.stem
    subprocess.run([str(compiler()), *FLAGS, str(source), "-o", str(driver), "-pthread"], check=True)
    return driver


def _works(driver: Path) -> list[str]:
    return subprocess.run([driver], capture_output=True, text=True, check=True).stdout.splitlines()


def _count_one(driver: Path, name: str, isa: str) -> int:
    options = ["--tool=callgrind", "--toggle-collect=fgrl_measured", "--callgrind-out-file=/dev/null"]
    result = subprocess.run(["valgrind", *options, str(driver), name, isa], capture_output=True, text=True, check=True)
    found = re.search(r"Collected : (\d+)", result.stderr)
    if found is None or int(found[1]) == 0:
        raise RuntimeError(f"valgrind counted nothing for {name}: {result.stderr}")
    return int(found[1])


def _has_avx2() -> bool:
    try:
        return " avx2 " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
