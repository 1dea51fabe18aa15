"""Stand-ins for the packages that OpenRLHF imports and that exist for CUDA alone; nothing of them is called."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

CUDA_ONLY = ("flash_attn", "vllm")


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in CUDA_ONLY or sys._getframe(1).f_code.co_name == "find_spec":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = self.missing  # type: ignore[method-assign]
        return module

    @staticmethod
    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})

    def exec_module(self, module: ModuleType) -> None:
        pass


sys.meta_path.append(StandIn())
