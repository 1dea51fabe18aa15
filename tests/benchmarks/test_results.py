"""What happens to results: comparing, reporting, plotting, counting instructions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import end_to_end, instructions, measure, report, results, scale, timing
from benchmarks.__main__ import main


def sample(seconds: float = 1e-3, spread: float = 0.02, device: str = "A CPU") -> dict[str, Any]:
    times = {"p20": seconds * (1 - spread), "p50": seconds, "p80": seconds * (1 + spread)}
    ours = {"status": "ok", "reason": "", "seconds": {"forward": times}, "laps": 9, "peak_bytes": 5_000_000}
    slower = {name: 3 * value for name, value in times.items()}
    return {
        "suite": "cpu",
        "environment": {
            "device": device, "date": "2026-01-02", "threads": 2, "commit": "abc", "python": "3.11", "torch": "2.13",
            "triton": "3.9", "peers": {"verl": "0.9.1"},
        },
        "ceilings": {"bytes_per_second": 1e10, "flops_per_second": {"float32": 1e11}},
        "cases": [
            {
                "op": "gae", "shape": "8x8 float32", "dtype": "float32", "backend": "cpp",
                "floor": {"forward": {"bytes": 1_000_000, "flops": 0}},
                "variants": {
                    "fgrl": ours,
                    "PyTorch": ours | {"seconds": {"forward": slower}},
                    "torch.compile": {"status": "absent", "reason": "unrolls the loop"},
                    "verl": {"status": "wrong", "reason": "output 1 differs"},
                },
            }
        ],
        "skipped": [],
        "errors": [],
    }  # fmt: skip


def written(folder: Path, name: str, content: dict[str, Any]) -> str:
    path = folder / f"{name}.json"
    results.save(content, path)
    return str(path)


class TestCompare:
    @pytest.mark.parametrize(
        ("old", "new", "status"),
        [
            pytest.param(sample(1e-3), sample(1e-3), 0, id="same"),
            pytest.param(sample(1e-3), sample(1.5e-3), 1, id="slower"),
            pytest.param(sample(1.5e-3), sample(1e-3), 0, id="faster"),
            pytest.param(sample(1e-3, 0.5), sample(1.5e-3, 0.5), 0, id="slower-within-the-noise"),
            pytest.param(sample(1e-3, 0.001), sample(1.03e-3, 0.001), 0, id="slower-within-the-tolerance"),
        ],
    )
    def test_exit_status(self, old: Any, new: Any, status: int, tmp_path: Path) -> None:
        assert main(["compare", written(tmp_path, "old", old), written(tmp_path, "new", new)]) == status

    def test_what_is_no_longer_right_is_a_regression(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        new = sample()
        new["cases"][0]["variants"]["fgrl"] = {"status": "wrong", "reason": "output 0 is off"}
        assert main(["compare", written(tmp_path, "old", sample()), written(tmp_path, "new", new)]) == 1
        assert "regression: wrong, output 0 is off" in capsys.readouterr().out

    def test_a_case_that_was_not_run_is_none(self, tmp_path: Path) -> None:
        new = sample() | {"cases": []}
        assert main(["compare", written(tmp_path, "old", sample()), written(tmp_path, "new", new)]) == 0

    def test_other_devices_are_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["compare", written(tmp_path, "old", sample()), written(tmp_path, "new", sample(device="B"))])
        assert "different devices: A CPU, B" in capsys.readouterr().out


class TestReport:
    PAGE = "".join(f"<!-- {name}:start -->\n<!-- {name}:end -->\n" for name in ("full-cpu", "full-gpu"))

    def test_round_trip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(results, "COMMITTED", tmp_path)
        written(tmp_path, "a-cpu-2026-01-02", sample(1.5e-3))
        text = report.render(self.PAGE, "docs/benchmarks.md")
        assert "| 8x8 float32 | forward | 1.50 ms | 100 µs | 15.0x | 3.00x | - | wrong |" in text
        assert "verl, 8x8 float32: wrong, output 1 differs" in text
        assert "No result yet: no GPU was at hand" in text
        assert report.render(text, "docs/benchmarks.md") == text
        assert report.render(text.replace("1.50 ms", "0.15 ms"), "docs/benchmarks.md") == text

    def test_the_newest_result_counts_and_a_gpu_is_not_a_cpu(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(results, "COMMITTED", tmp_path)
        for name, suite in (("z-2026-01-02", "cpu"), ("a-2026-01-03", "cpu"), ("b-2026-01-04", "gpu")):
            written(tmp_path, name, sample() | {"suite": suite})
        assert [found[0] for kind in ("cpu", "gpu") if (found := results.newest("cases", kind))] == [
            "a-2026-01-03.json",
            "b-2026-01-04.json",
        ]
        assert results.newest("scale") is None

    def test_file_name(self) -> None:
        assert results.file_name(sample(device="NVIDIA H100 80GB HBM3")) == "nvidia-h100-80gb-hbm3-2026-01-02.json"


def test_a_run_leaves_results_that_can_be_read(tmp_path: Path) -> None:
    assert main(["run", "--suite", "tiny", "--ops", "whiten", "--out", str(tmp_path)]) == 0
    found = results.load(tmp_path)
    assert [case["op"] for case in found["cases"]] == ["whiten"]
    assert {"device", "torch", "triton", "commit", "threads", "peers", "date"} <= set(found["environment"])
    assert found["ceilings"]["bytes_per_second"] > 0
    assert main(["step", "--suite", "tiny", "--out", str(tmp_path)]) == 0
    assert {"cases", "end_to_end"} <= set(results.load(tmp_path))
    assert not list(tmp_path.glob("*.draft"))


def test_nothing_is_begun_after_the_limit(tmp_path: Path) -> None:
    arguments = ["run", "--suite", "tiny", "--ops", "whiten", "--out", str(tmp_path), "--seconds", "0"]
    assert main(arguments) == 0
    found = results.load(tmp_path)
    assert (found["cases"], found["skipped"]) == ([], ["whiten 3x17 float32"])


def test_an_error_costs_its_case_only_and_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = measure.measure

    def broken(op: Any, *arguments: Any) -> Any:
        if op.name == "whiten":
            raise MemoryError("too large")
        return right(op, *arguments)

    monkeypatch.setattr(measure, "measure", broken)
    assert main(["run", "--suite", "tiny", "--ops", "whiten", "value_loss", "--out", str(tmp_path)]) == 1
    found = results.load(tmp_path)
    assert [case["op"] for case in found["cases"]] == ["value_loss"]
    assert found["errors"] == ["whiten 3x17 float32: MemoryError: too large"]


def test_figures_are_the_same_twice(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curve = {
        "op": "gae", "axis": "tokens", "shape": "", "floor": [{"size": 1024, "seconds": 1e-6}],
        "points": {"fgrl": [{"size": 1024, "seconds": {"p50": 1e-5}, "peak_bytes": 4096}], "PyTorch": []},
    }  # fmt: skip
    file = written(tmp_path, "a", sample() | {"scale": [curve]})
    drawings = []
    for folder in ("one", "two"):
        assert main(["plot", file, "--out", str(tmp_path / folder)]) == 0
        drawings.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert drawings[0] == drawings[1]
    assert set(drawings[0]) == {f"benchmarks-{name}-cpu.svg" for name in ("floor", "scale-time", "scale-memory")}


def test_scaling_ends_where_a_variant_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "SLOWEST", 0.0)
    (curve,) = scale.run("tiny", ["whiten"], torch.device("cpu"), float("inf"))
    assert [point["size"] for point in curve["floor"]] == [1024]
    assert len(curve["points"]["fgrl"]) == len(curve["points"]["PyTorch"]) == 1


def test_a_step_with_another_loss_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = end_to_end.TOOLKITS[measure.OURS]

    def wrong() -> end_to_end.Toolkit:
        kit = right()
        return end_to_end.replace(kit, value_loss=lambda values, batch: 1.1 * kit.value_loss(values, batch))

    monkeypatch.setitem(end_to_end.TOOLKITS, measure.OURS, wrong)
    cells = end_to_end.run("tiny", torch.device("cpu"))["variants"]
    assert cells[measure.EAGER]["status"] == "ok"
    assert cells[measure.OURS]["status"] == "wrong"
    assert "seconds" not in cells[measure.OURS]


class TestInstructions:
    def test_more_than_the_tolerance_is_named(self) -> None:
        before = {"a": 1000, "b": 1000}
        assert instructions.judge({"a": 1020, "b": 500}, before) == []
        assert instructions.judge({"a": 1021, "b": 1000}, before) == ["a: 1021 instructions, 2.1 % more than 1000"]
        assert instructions.judge({"a": 1000, "c": 1}, before) == ["c: no committed count", "b: not counted any more"]

    def test_without_valgrind_nothing_is_judged(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setenv("CXX", "c++")
        assert instructions.main([]) == 0
        assert "skipped: valgrind is not installed" in capsys.readouterr().out

    def test_counts_of_another_compiler_are_not_judged(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        baseline = tmp_path / "instructions.json"
        baseline.write_text(json.dumps({"compiler": "cc 1", "counts": {"a": 1}}), encoding="utf-8")
        for name, value in (("BASELINE", baseline), ("why_not", str), ("count", lambda: {"a": 9})):
            monkeypatch.setattr(instructions, name, value)
        monkeypatch.setattr(instructions, "version", lambda: "cc 2")
        assert instructions.main([]) == 0
        assert "not judged" in capsys.readouterr().out
        monkeypatch.setattr(instructions, "version", lambda: "cc 1")
        assert instructions.main([]) == 1
        assert instructions.main(["--update"]) == 0
        assert instructions.main([]) == 0

    @pytest.mark.slow
    @pytest.mark.skipif(bool(instructions.why_not()), reason=instructions.why_not())
    def test_the_driver_counts_every_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(instructions, "ISAS", ("baseline",))
        counts = instructions.count()
        assert min(counts.values()) > 10_000


def test_results_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.save({"cases": []}, path)
    with pytest.raises(TypeError):
        results.save({"cases": [object()]}, path)
    assert results.load(tmp_path) == {"cases": []}
    results.update(path, scale=[1])
    assert results.load(path) == {"cases": [], "scale": [1]}
    assert copy.deepcopy(results.load(path)) == results.load(path)


def test_a_result_says_which_vector_instructions_it_is_from() -> None:
    environment = timing.environment()
    named = timing.processor(environment | {"device": environment["cpu"]})
    assert named.startswith(environment["cpu"])
    assert torch.backends.cpu.get_cpu_capability().lower() in named
    old = {"cpu": "A CPU", "device": "A CPU"}
    assert timing.processor(old) == "A CPU"
    new = old | {"cpu_capability": {"fgrl": "avx2", "torch": "AVX2"}}
    assert timing.processor(new) == "A CPU (C++ on avx2, PyTorch on avx2)"
    assert timing.processor(new | {"device": "A GPU"}) == "A GPU"
