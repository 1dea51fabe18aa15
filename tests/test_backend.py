"""`use_backend`: an explicit request never falls back, and it ends where its `with` block ends."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch

import fgrl
from fgrl import backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def fake_op(monkeypatch: pytest.MonkeyPatch) -> str:
    """An op with both fast implementations listed, so that the rules can be tried without them."""
    monkeypatch.setitem(backend._IMPLEMENTATIONS, "fake", ("triton", "cpp"))
    monkeypatch.setattr(backend.extension, "why_not", lambda: None)
    return "fake"


def gae() -> Any:
    return fgrl.ops.gae(torch.ones(1, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("op", backend.ops())
def test_every_op_runs_on_the_reference(op: str) -> None:
    with fgrl.use_backend("reference"):
        choice = backend.explain(op, CPU)
    assert choice.backend == "reference"
    assert "requested" in choice.reason
    assert callable(getattr(fgrl.reference, op))


@pytest.mark.parametrize("op", backend.ops())
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_auto_always_finds_one_and_says_why(op: str, device: torch.device) -> None:
    choice = backend.explain(op, device)
    assert choice.backend in ("triton", "cpp", "reference")
    assert choice.reason


def test_all_public_ops_are_listed() -> None:
    public = {name for name in fgrl.ops.__all__ if name.islower()}
    assert set(backend.ops()) == public


def test_an_explicit_request_never_falls_back(fake_op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.extension, "why_not", lambda: "it was not built")
    assert backend.explain(fake_op, CPU).backend == "reference"
    with fgrl.use_backend("cpp"), pytest.raises(RuntimeError, match=r"fake.*cpp.*it was not built.*use_backend"):
        backend.explain(fake_op, CPU)


def test_a_request_for_an_implementation_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backend._IMPLEMENTATIONS, "gae", ())
    with fgrl.use_backend("cpp"), pytest.raises(RuntimeError, match=r"gae.*cpp.*no such implementation"):
        gae()
    gae()


@pytest.mark.parametrize(
    ("request_", "device", "match"), [("cpp", CUDA, "on cuda"), ("triton", CPU, "on cpu")], ids=["cpp", "triton"]
)
def test_a_request_that_the_device_cannot_meet(fake_op: str, request_: Any, device: torch.device, match: str) -> None:
    with fgrl.use_backend(request_), pytest.raises(RuntimeError, match=match):
        backend.resolve(fake_op, device)


def test_triton_absent_is_an_obstacle_and_not_a_crash(fake_op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(backend, "import_module", absent)
    assert backend.resolve(fake_op, CUDA) == "reference"
    with fgrl.use_backend("triton"), pytest.raises(RuntimeError, match="triton cannot be imported"):
        backend.resolve(fake_op, CUDA)


def test_auto_prefers_in_the_listed_order(fake_op: str) -> None:
    assert backend.resolve(fake_op, CPU) == "cpp"


@pytest.mark.parametrize("name", ["cuda", "", "Reference", None, 3], ids=str)
def test_an_unknown_name(name: Any) -> None:
    with (
        pytest.raises(ValueError, match=r"backend is .*; it must be one of auto, triton, cpp, reference"),
        fgrl.use_backend(name),
    ):
        pass


def test_blocks_nest(fake_op: str) -> None:
    with fgrl.use_backend("cpp"):
        with fgrl.use_backend("reference"):
            assert backend.resolve(fake_op, CPU) == "reference"
            with fgrl.use_backend("auto"):
                assert backend.explain(fake_op, CPU).reason == "fastest available"
        assert backend.explain(fake_op, CPU).reason == "requested with use_backend"
        assert backend.resolve(fake_op, CPU) == "cpp"


def test_an_exception_ends_the_block(fake_op: str) -> None:
    with pytest.raises(KeyError), fgrl.use_backend("reference"):
        raise KeyError
    assert backend.resolve(fake_op, CPU) == "cpp"


def test_threads_do_not_see_each_others_choice(fake_op: str) -> None:
    seen: dict[str, str] = {}
    inside, looked = threading.Event(), threading.Event()

    def chooses() -> None:
        with fgrl.use_backend("reference"):
            inside.set()
            looked.wait(10)
            seen["chooses"] = backend.resolve(fake_op, CPU)

    def looks() -> None:
        inside.wait(10)
        seen["looks"] = backend.resolve(fake_op, CPU)
        looked.set()

    threads = [threading.Thread(target=target) for target in (chooses, looks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == {"chooses": "reference", "looks": "cpp"}
    assert backend.resolve(fake_op, CPU) == "cpp"


def test_tasks_do_not_see_each_others_choice(fake_op: str) -> None:
    async def chooses() -> str:
        with fgrl.use_backend("reference"):
            await asyncio.sleep(0)
            return backend.resolve(fake_op, CPU)

    async def looks() -> str:
        await asyncio.sleep(0)
        return backend.resolve(fake_op, CPU)

    async def both() -> list[str]:
        return await asyncio.gather(chooses(), looks())

    assert asyncio.run(both()) == ["reference", "cpp"]


def test_a_request_reaches_the_ops() -> None:
    with fgrl.use_backend("reference"):
        assert gae().advantages.tolist() == fgrl.reference.gae(torch.ones(1, 2), torch.zeros(1, 2)).advantages.tolist()
