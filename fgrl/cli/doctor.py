"""`fgrl doctor`: what is installed, and which backend each op will use and why."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib import metadata
from typing import Any

import torch

import fgrl
from fgrl import backend, extension

NAME = "doctor"
HELP = "show versions, the extension, the GPU, and which backend each op will use and why"

_PACKAGES = ("triton", "transformers", "accelerate", "datasets", "safetensors", "peft", "flash-attn", "trl", "verl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl doctor`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--device", help="device to explain the ops for (default: cuda when there is one, else cpu)")


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 even where something optional is missing, since every op has a fallback."""
    report = diagnose(args.device)
    print(json.dumps(report, indent=2) if args.json else _as_text(report))
    return 0


def diagnose(device: str | None = None) -> dict[str, Any]:
    """Everything `fgrl doctor` knows, as plain data.

    Raises:
        ValueError: `device` is not a device torch knows.
    """
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; it must be a torch device such as cpu or cuda") from error
    choices = {op: _choice(op, target) for op in backend.ops()}
    return {
        "fgrl": fgrl.__version__,
        "imported": str(extension.imported_from()),
        "installed": [str(folder) for folder in extension.installed_at()],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "extension": extension.why_not() or "loaded",
        "cpu_capability": extension.cpu_capability(),
        "device": str(target),
        "ops": {op: {"backend": choice.backend, "reason": choice.reason} for op, choice in choices.items()},
    }


def _choice(op: str, device: torch.device) -> backend.Choice:
    try:
        return backend.explain(op, device)
    except RuntimeError as error:
        return backend.Choice("none", str(error))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _as_text(report: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version or '(not installed)'}" for name, version in report["packages"].items())
    lines = [
        f"fgrl       {report['fgrl']}  (python {report['python']}, torch {report['torch']}, {sys.platform})",
        f"imported   {report['imported']}",
        f"installed  {', '.join(report['installed']) or 'nowhere: this is a source tree'}",
        f"packages   {packages}",
        f"extension  {report['extension']}",
        f"GPU        {', '.join(report['gpus']) or 'none'}",
        f"CPU        {report['cpu_threads']} threads, C++ ops on {report['cpu_capability'] or 'none'}",
        "",
        f"ops on {report['device']}:",
    ]
    lines += [f"  {op:22} {choice['backend']:10} {choice['reason']}" for op, choice in report["ops"].items()]
    return "\n".join(lines)
