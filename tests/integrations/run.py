"""Run the tests of one host in an environment of its own: `python run.py HOST CACHE [pytest options]`.

The environment lies in CACHE. It gets torch first and alone, so that the host cannot choose it, then
`requirements/integrations.txt`, then the host from `requirements/integrations/HOST.txt` and, without dependencies, what
`HOST.no-deps.txt` lists if there is one; it is made again when one of these files changes. This checkout is installed
into it for editing, with the extension that was built here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"


class GoneFromRegistry(Exception):
    """A pinned package is in the registry no longer, although the registry answers."""


def hosts() -> list[str]:
    return sorted(path.stem for path in (REQUIREMENTS / "integrations").glob("*.txt") if "." not in path.stem)


def pip(environment: Path, *arguments: str, may_be_gone: bool = False) -> None:
    """Run pip there; what it prints is shown when it fails.

    Raises:
        GoneFromRegistry: something that `may_be_gone` has no distribution in the registry, and other packages have.
        SystemExit: it failed otherwise.
    """
    command = [str(environment / "bin" / "python"), "-m", "pip", *arguments]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode == 0:
        return
    missing = [line for line in result.stdout.splitlines() if "No matching distribution found for" in line]
    # pip says the same of every package when it cannot reach the registry at all.
    probe = [*command[:3], "download", "-q", "--no-deps", "--no-cache-dir", "-d"]
    if (
        may_be_gone
        and missing
        and subprocess.run([*probe, str(environment / "probe"), "pip"], check=False).returncode == 0
    ):
        raise GoneFromRegistry(missing[-1].removeprefix("ERROR: "))
    sys.stderr.write(result.stdout)
    raise SystemExit(f"pip {' '.join(arguments)} failed")


def prepared(host: str, cache: Path) -> Path:
    """The host's environment; an unfinished one is made again from the start."""
    no_deps = REQUIREMENTS / "integrations" / f"{host}.no-deps.txt"
    shared = [REQUIREMENTS / "torch.txt", REQUIREMENTS / "integrations.txt"]
    files = [*shared, REQUIREMENTS / "integrations" / f"{host}.txt", *([no_deps] if no_deps.exists() else [])]
    digest = hashlib.sha256(b"\0".join([sys.version.encode(), *(path.read_bytes() for path in files)])).hexdigest()
    environment = cache / f"{host}-{digest[:12]}"
    done = environment / ".requirements"
    if not done.exists():
        print(f"{host}: installing into {environment}", flush=True)
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        for path in files:
            options = ["--no-deps"] if path == no_deps else []
            pip(environment, "install", "-q", *options, "-r", str(path), may_be_gone=path not in shared)
        done.touch()
    os.environ["FGRL_SKIP_EXT"] = "1"  # the stable ABI makes the library in this checkout good for every environment
    pip(environment, "install", "-q", "--no-build-isolation", "--no-deps", "-e", str(ROOT))
    return environment


def main() -> int:
    host, cache, *options = sys.argv[1:]
    if host not in hosts():
        raise SystemExit(f"{host!r} is no host; it must be one of {', '.join(hosts())}")
    try:
        environment = prepared(host, Path(cache).expanduser().resolve())
    except GoneFromRegistry as reason:
        print(f"\nSKIPPED: the tests of {host} did not run: {reason}\n", flush=True)
        return 0
    os.environ["PATH"] = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    command = [str(environment / "bin" / "python"), "-m", "pytest", f"tests/integrations/{host}", *options]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
