"""What an installation contains, what it needs, and that it works without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fgrl
from fgrl import extension

ROOT = Path(__file__).parents[1]
checkout = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs a source checkout")


def run_python(code: str, cwd: Path, **environment: str) -> str:
    """Output of a fresh interpreter that can import neither triton nor transformers."""
    blocked = "import sys; sys.modules['triton'] = sys.modules['transformers'] = None\n"
    result = subprocess.run(
        [sys.executable, "-c", blocked + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,  # `python -c` looks there first, so it must not be the checkout
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built with FGRL_SKIP_EXT=1, from a copy so that the checkout stays as it is."""
    pytest.importorskip("setuptools", minversion="80")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for part in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "fgrl", "kernels", "csrc"):
        target = source / part
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-R", str(ROOT / part), str(target)], check=True)
    for library in source.glob("fgrl/_C*.so"):
        library.unlink()
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(folder), "."]
    environment = {**os.environ, "FGRL_SKIP_EXT": "1"}
    result = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@checkout
def test_setup_lists_every_package() -> None:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "fgrl").rglob("__init__.py")}
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    listed = set(text.split("PACKAGES = [")[1].split("]")[0].replace('"', "").replace(",", "").split())
    assert listed == found | {"fgrl.kernels"}


@checkout
def test_an_isolated_build_gets_what_it_needs() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires = ["setuptools>=80", "ninja", "torch>=2.10"]' in text
    assert f'version = "{fgrl.__version__}"' in text


@pytest.mark.slow
@checkout
def test_a_wheel_without_a_compiler_is_pure_and_complete(pure_wheel: Path) -> None:
    with zipfile.ZipFile(pure_wheel) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert pure_wheel.name == f"fgrl-{fgrl.__version__}-py3-none-any.whl"
    assert {name.split("/")[0] for name in names} == {"fgrl", f"fgrl-{fgrl.__version__}.dist-info"}
    assert {"fgrl/py.typed", "fgrl/kernels/__init__.py", "fgrl/reference/align_edits.py"} <= set(names)
    assert f"fgrl-{fgrl.__version__}.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if "test" in name or name.endswith((".so", ".cpp"))]
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata
    assert "Requires-Dist: torch>=2.10" in metadata


@pytest.mark.slow
@checkout
def test_a_wheel_without_a_compiler_falls_back(pure_wheel: Path) -> None:
    code = """
# An editable install would lend the wheel its extension.
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
import fgrl
from fgrl import extension
print(fgrl.__file__)
print(extension.why_not())
print(fgrl.align_edits([[1, 2, 3]], [[1, 3]]).original_ops.tolist())
try:
    with fgrl.use_backend("cpp"):
        fgrl.align_edits([[1]], [[1]])
except RuntimeError as error:
    print(error)
"""
    home, reason, labels, refusal = run_python(code, pure_wheel.parent, PYTHONPATH=str(pure_wheel)).splitlines()
    assert str(pure_wheel) in home
    assert reason == "the extension fgrl._C was left out of this install (FGRL_SKIP_EXT=1)"
    assert labels == "[0, 2, 0]"
    assert "align_edits cannot run on the requested backend cpp" in refusal


def test_import_needs_torch_only(tmp_path: Path) -> None:
    code = """
import fgrl
print(sorted({"accelerate", "datasets", "peft", "yaml", "matplotlib"} & set(sys.modules)))
print(fgrl.kernels.__name__, "fgrl._C" in sys.modules)
"""
    assert run_python(code, tmp_path) == "[]\nfgrl.kernels False\n"


def test_extension_loads_before_anything_else_imported_torch(tmp_path: Path) -> None:
    if not extension.available():
        pytest.skip(str(extension.why_not()))
    assert run_python("from fgrl.extension import why_not; print(why_not())", tmp_path) == "None\n"


def test_no_top_level_package_called_kernels(tmp_path: Path) -> None:
    code = "import fgrl.kernels, importlib.util; print(importlib.util.find_spec('kernels'))"
    assert run_python(code, tmp_path) == "None\n"
