"""Builds `fgrl._C` (C++, LibTorch Stable ABI, abi3) and maps the top-level folder `kernels/` to `fgrl.kernels`.

`FGRL_SKIP_EXT=1` installs without a compiler; every op then runs on its PyTorch or Python reference.
"""

import os
import platform
from pathlib import Path

from setuptools import setup

# The oldest torch whose Stable ABI the extension uses: 2.10. The wheel runs on that version and every later one.
TORCH_TARGET_VERSION = "0x020a000000000000"
PACKAGES = [
    "fgrl",
    "fgrl.cli",
    "fgrl.data",
    "fgrl.data.formats",
    "fgrl.data.inspection",
    "fgrl.demo",
    "fgrl.edits",
    "fgrl.integrations",
    "fgrl.integrations.trl",
    "fgrl.integrations.verl",
    "fgrl.kernels",
    "fgrl.models",
    "fgrl.ops",
    "fgrl.pages",
    "fgrl.preference",
    "fgrl.reference",
    "fgrl.trainer",
]


def extension_arguments() -> dict:
    """The arguments of `setup` that build the extension, or none when it is skipped."""
    if os.environ.get("FGRL_SKIP_EXT", "0") not in ("", "0"):
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    if platform.system() == "Windows":
        compile_args, link_args = ["/O2", "/DNDEBUG"], []
    else:
        compile_args = ["-O3", "-DNDEBUG", "-fvisibility=hidden", "-g0"]
        link_args = ["-Wl,-s"] if platform.system() == "Linux" else []
    module = CppExtension(
        "fgrl._C",
        [str(source) for source in sorted(Path("csrc").rglob("*.cpp"))],
        depends=[str(header) for header in sorted(Path("csrc").rglob("*.[hi]*"))],
        include_dirs=[str(Path("csrc").resolve())],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=True)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(
    packages=PACKAGES,
    package_dir={"fgrl.kernels": "kernels"},
    package_data={"fgrl": ["py.typed"], "fgrl.edits": ["templates/*.txt"]},
    include_package_data=False,
    **extension_arguments(),
)
