"""`use_backend`: an explicit request never falls back, and it ends where its `with` block ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fgrl
from fgrl import backend
from fgrl.cli.doctor import diagnose

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


@pytest.fixture
def fresh_warnings() -> None:
    backend._warn.cache_clear()


def test_slowness_is_said_once_for_each_reason(
    fake_op: str, monkeypatch: pytest.MonkeyPatch, fresh_warnings: None
) -> None:
    monkeypatch.setattr(backend.extension, "why_not", lambda: "it was not built")
    monkeypatch.setattr(backend.extension, "was_left_out", lambda: False)
    with pytest.warns(RuntimeWarning, match=r"reference for cpu tensors.*it was not built") as caught:
        assert {backend.resolve(op, CPU) for op in (fake_op, "gae", fake_op, "whiten")} == {"reference"}
    assert len(caught) == 1
    with pytest.warns(RuntimeWarning, match=r"reference for mps tensors.*these are on mps"):
        backend.resolve(fake_op, torch.device("mps"))


@pytest.mark.filterwarnings("error")
def test_slowness_that_was_asked_for_is_not_said(
    fake_op: str, monkeypatch: pytest.MonkeyPatch, fresh_warnings: None
) -> None:
    with fgrl.use_backend("reference"):
        assert backend.resolve(fake_op, CPU) == "reference"
    monkeypatch.setattr(backend.extension, "why_not", lambda: "it was not built")
    assert backend.explain(fake_op, CPU).backend == "reference", "to explain is not to run"
    monkeypatch.setattr(backend.extension, "was_left_out", lambda: True)
    assert backend.resolve(fake_op, CPU) == "reference"


@pytest.mark.filterwarnings("error")
def test_a_gpu_without_triton(fake_op: str, monkeypatch: pytest.MonkeyPatch, fresh_warnings: None) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(backend, "import_module", absent)
    monkeypatch.setattr(backend.extension, "was_left_out", lambda: False)
    with pytest.raises(RuntimeWarning, match=r"reference for cuda tensors.*triton cannot be imported"):
        backend.resolve(fake_op, CUDA)


def backends_of(compiled: Any, seen: list[str], *requests: str) -> list[str]:
    """Which backends a compiled function runs on, called under each of the requests."""
    found = []
    for request in requests:
        with fgrl.use_backend(request):  # type: ignore[arg-type]
            compiled(torch.ones(1, 2))
        found.append(seen[-1])
    return found


@pytest.fixture
def compiled_gae(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """`gae` compiled into one graph, and a list to which each run adds the backend: the operator, or the reference."""
    torch._dynamo.reset()
    seen: list[str] = []

    def watched(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        targets = [str(node.target) for node in graph.graph.nodes]
        kind = "operator" if any("fgrl.gae" in target for target in targets) else "reference"

        def run(*args: Any) -> Any:
            seen.append(kind)
            return graph.forward(*args)

        return run

    function = torch.compile(lambda x: fgrl.ops.gae(x, x).advantages, backend=watched, fullgraph=True)
    return function, seen


def test_a_compiled_function_follows_the_request_of_its_call(compiled_gae: Any) -> None:
    compiled, seen = compiled_gae
    own = "operator" if backend.resolve("gae", CPU) != "reference" else "reference"
    requests = ("auto", "reference", "auto", "reference")
    assert backends_of(compiled, seen, *requests) == [own, "reference", own, "reference"]
    with fgrl.use_backend("reference"), fgrl.use_backend("auto"):
        compiled(torch.ones(1, 2))
    assert seen[-1] == own
    other = "triton" if backend.resolve("gae", CPU) != "triton" else "cpp"
    with fgrl.use_backend(other), pytest.raises(Exception, match=f"gae cannot run on the requested backend {other}"):
        compiled(torch.ones(1, 2))
    with fgrl.use_backend(backend.resolve("gae", CPU)):  # type: ignore[arg-type]
        compiled(torch.ones(1, 2))
    assert seen[-1] == own


def test_a_compiled_function_follows_the_request_of_its_thread(compiled_gae: Any) -> None:
    compiled, seen = compiled_gae
    with fgrl.use_backend("reference"):
        compiled(torch.ones(1, 2))
        thread = threading.Thread(target=lambda: compiled(torch.ones(1, 2)))
        thread.start()
        thread.join(60)
        compiled(torch.ones(1, 2))
    own = "operator" if backend.resolve("gae", CPU) != "reference" else "reference"
    assert seen == ["reference", own, "reference"]


SOURCE_TREE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, fgrl
    for _ in range(2):
        fgrl.ops.gae(torch.ones(1, 2), torch.zeros(1, 2))
        fgrl.ops.whiten(torch.ones(1, 2), torch.ones(1, 2))
print([str(warning.message) for warning in caught if "fgrl" in str(warning.message)])
from fgrl.cli.doctor import diagnose
report = diagnose("cpu")
print(report["imported"], report["installed"])
"""


@pytest.mark.parametrize("skipped", [False, True], ids=["installed", "FGRL_SKIP_EXT"])
def test_a_source_tree_that_hides_the_installed_package(skipped: bool, tmp_path: Path) -> None:
    """After `pip install .`, Python started in the checkout imports the checkout."""
    source = Path(fgrl.__file__).parent
    site, checkout = tmp_path / "site", tmp_path / "checkout"
    for folder in (site, checkout):
        shutil.copytree(source, folder / "fgrl", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    record = site / "fgrl-0.1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: fgrl\nVersion: 0.1.0\n")
    (record / "WHEEL").write_text(f"Wheel-Version: 1.0\nRoot-Is-Purelib: {str(skipped).lower()}\n")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *packages]), "TRITON_INTERPRET": ""}

    def run(folder: Path) -> list[str]:
        command = [sys.executable, "-S", "-c", SOURCE_TREE]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return result.stdout.splitlines()

    said, paths = run(checkout)
    assert said.count("source tree without the extension") == 1, said
    assert f"{checkout}/fgrl" in said
    assert f"the installed package is {site}/fgrl" in said
    assert paths.startswith(f"{checkout}/fgrl ['{site}/fgrl'")
    said, _ = run(tmp_path)
    assert ("the extension fgrl._C is missing" in said) == (not skipped), said
    assert (said == "[]") == skipped


NEED_FP64 = {"token_advantages", "group_advantages", "whiten"}


@pytest.mark.parametrize("request_", ["auto", "reference"])
@pytest.mark.parametrize("op", backend.ops())
def test_a_device_without_fp64_is_refused_in_one_sentence_or_runs_the_reference(op: str, request_: Any) -> None:
    """Which references need fp64 is tested in tests/ops/test_library.py."""
    with fgrl.use_backend(request_):
        if op in NEED_FP64:
            with pytest.raises(
                RuntimeError, match=rf"^{op} adds up in fp64, and its tensors are on mps:0, which has no"
            ):
                backend.explain(op, torch.device("mps", 0))
        else:
            assert backend.explain(op, torch.device("mps", 0)).backend == "reference"


@pytest.mark.parametrize("has_fp64", [False, True])
@pytest.mark.parametrize("op", backend.ops())
def test_a_gpu_says_itself_whether_it_has_fp64(op: str, has_fp64: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace(has_fp64=has_fp64))
    monkeypatch.setattr(backend, "_triton_obstacle", lambda: None)
    device = torch.device("xpu", 1)
    kernels = "triton" in backend._IMPLEMENTATIONS[op] and (has_fp64 or op == "token_reward_head")
    if kernels:
        assert backend.explain(op, device).backend == "triton"
    elif op in NEED_FP64 and not has_fp64:
        with pytest.raises(RuntimeError, match="xpu:1, which has no fp64; they must be"):
            backend.explain(op, device)
    else:
        choice = backend.explain(op, device)
        assert choice.backend == "reference"
        assert has_fp64 or op in ("align_edits",) or "in fp64, which xpu:1 does not have" in choice.reason
    if not has_fp64 and op == "gae":
        with fgrl.use_backend("triton"), pytest.raises(RuntimeError, match="its kernels compute in fp64, which xpu:1"):
            backend.explain(op, device)


def test_doctor_lists_what_no_backend_runs() -> None:
    ops = diagnose("mps")["ops"]
    assert ops["gae"]["backend"] == "reference"
    assert ops["whiten"]["backend"] == "none"
    assert "must be on a device that has it" in ops["whiten"]["reason"]
