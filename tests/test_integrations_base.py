"""What all adapters share, without a host: versions, signatures, and patches that can be undone."""

from __future__ import annotations

import subprocess
import sys
import types
from importlib import metadata
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
