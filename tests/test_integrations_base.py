"""What all adapters share, without a host: versions, signatures, and patches that can be undone."""

from __future__ import annotations

import runpy
import subprocess
import sys
import types
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from fgrl.integrations._host import Patch, Replacement, require_parameters, require_version


def test_importing_the_package_imports_no_host() -> None:
    code = (
        "import sys; before = set(sys.modules); import fgrl.integrations\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}"
        " & {'trl', 'verl', 'openrlhf', 'transformers', 'ray', 'accelerate', 'deepspeed'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_version_outside_is_refused_in_one_sentence_that_says_what_to_install() -> None:
    installed = metadata.version("pytest")
    assert require_version("pytest", f"=={installed}") == installed
    with pytest.raises(ImportError) as caught:
        require_version("pytest", "==1.2.*")
    assert str(caught.value) == f"pytest is {installed}; it must be ==1.2.*: pip install 'pytest==1.2.*'"


def test_a_host_that_is_not_installed_is_refused_in_the_same_form() -> None:
    with pytest.raises(ImportError) as caught:
        require_version("no-such-host", "==0.9.1")
    assert str(caught.value) == ("no-such-host is not installed; it must be ==0.9.1: pip install 'no-such-host==0.9.1'")


@pytest.mark.parametrize("installed", ["1.16.0", "1.16.3", "1.16.0rc1", "1.16.0+local"])
def test_pre_releases_and_local_builds_of_a_supported_version_count(
    installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: installed)
    assert require_version("trl", "==1.16.*") == installed


def test_a_function_with_other_parameters_is_refused() -> None:
    def loss(logprobs: Any, mask: Any) -> None: ...

    require_parameters(loss, ["logprobs", "mask"])
    for other in (["mask", "logprobs"], ["logprobs"], ["logprobs", "mask", "config"]):
        with pytest.raises(ImportError, match=r"takes \(logprobs, mask\); it must take"):
            require_parameters(loss, other)


class Base:
    @staticmethod
    def loss() -> str:
        return "stock"


class Child(Base):
    pass


def test_undo_restores_exactly_what_each_kind_of_owner_held() -> None:
    """A module's function, a static method, a name that is only inherited, an item, and an item that was not there."""
    module: Any = types.ModuleType("module")
    module.loss = Base.loss
    registry: dict[str, Any] = {"gae": "stock"}
    static = vars(Base)["loss"]

    def ours() -> str:
        return "ours"

    patch = Patch(
        "ours",
        [
            Replacement(module, "loss", ours),
            Replacement(Base, "loss", staticmethod(ours)),
            Replacement(Child, "loss", staticmethod(ours)),
            Replacement(registry, "gae", "ours"),
            Replacement(registry, "new", "ours"),
        ],
    )
    assert not patch.applied
    assert patch.apply() is patch
    assert patch.applied
    assert (module.loss(), Base.loss(), Child.loss()) == ("ours", "ours", "ours")
    assert registry == {"gae": "ours", "new": "ours"}
    patch.undo()
    patch.undo()
    assert not patch.applied
    assert (module.loss(), Base.loss(), Child.loss()) == ("stock", "stock", "stock")
    assert vars(Base)["loss"] is static
    assert "loss" not in vars(Child)
    assert registry == {"gae": "stock"}


def test_a_place_is_patched_once_at_a_time() -> None:
    host = types.SimpleNamespace(loss=abs)
    first, second = (Patch(name, [Replacement(host, "loss", max)]) for name in ("first", "second"))
    first.apply()
    for patch in (first, second):
        with pytest.raises(RuntimeError, match=r"SimpleNamespace\.loss is patched already, by first; undo\(\) that"):
            patch.apply()
    first.undo()
    with second:
        assert host.loss is max
    assert host.loss is abs


def test_what_cannot_be_applied_whole_changes_nothing() -> None:
    host = types.SimpleNamespace(loss=abs)
    patch = Patch("ours", [Replacement(host, "loss", max), Replacement(host, "gone", max)])
    with pytest.raises(ImportError, match="gone is missing"):
        patch.apply()
    assert host.loss is abs
    assert not patch.applied


def test_undo_does_not_overwrite_a_later_replacement() -> None:
    host = types.SimpleNamespace(loss=abs, other=abs)
    patch = Patch("ours", [Replacement(host, "other", max), Replacement(host, "loss", max)]).apply()
    host.loss = min
    with pytest.raises(RuntimeError, match="replaced again after ours"):
        patch.undo()
    assert host.loss is min
    assert host.other is max
    host.loss = max
    patch.undo()
    assert host.loss is host.other is abs


def test_a_patch_is_undone_when_its_block_fails() -> None:
    host = types.SimpleNamespace(loss=abs)
    with pytest.raises(ZeroDivisionError), Patch("ours", [Replacement(host, "loss", max)]):
        raise ZeroDivisionError
    assert host.loss is abs


RUN = Path(__file__).parent / "integrations" / "run.py"


def _wheel(folder: Path, name: str) -> None:
    """An empty package."""
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        info = f"{name}-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(
    ("registry", "may_be_gone", "outcome"),
    [("answers", True, "gone"), ("answers", False, "failed"), ("silent", True, "failed")],
    ids=["the host is gone", "something else is gone", "no registry"],
)
def test_only_a_host_that_the_registry_lost_is_skipped(
    registry: str, may_be_gone: bool, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip says "No matching distribution" in all three cases; the registry is a folder here."""
    run = runpy.run_path(str(RUN))
    packages = tmp_path / "packages"
    packages.mkdir()
    if registry == "answers":
        _wheel(packages, "pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packages))
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    wanted = run["GoneFromRegistry"] if outcome == "gone" else SystemExit
    with pytest.raises(
        wanted, match="No matching distribution found for trl==1.16.0" if outcome == "gone" else "failed"
    ):
        run["pip"](
            environment, "install", "-q", "--target", str(tmp_path / "out"), "trl==1.16.0", may_be_gone=may_be_gone
        )


def test_a_host_that_is_gone_is_a_printed_skip_and_a_failed_test_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = runpy.run_path(str(RUN))

    def gone(host: str, cache: Path) -> Path:
        raise run["GoneFromRegistry"]("No matching distribution found for trl==1.16.0")

    names = run["main"].__globals__
    monkeypatch.setattr(sys, "argv", ["run.py", "trl", str(tmp_path), "-k", "nothing_is_called_so"])
    monkeypatch.setitem(names, "prepared", gone)
    assert run["main"]() == 0
    assert "SKIPPED: the tests of trl did not run: No matching distribution" in capsys.readouterr().out
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 5\n")
    python.chmod(0o755)
    monkeypatch.setitem(names, "prepared", lambda host, cache: tmp_path)
    assert run["main"]() == 5
