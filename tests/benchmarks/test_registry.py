"""Every op is in the registry, and measured right: what is wrong has no speed, and a missing peer is a gap."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import torch

import fgrl
from benchmarks import accuracy, measure, memory, peers, runner, tables
from benchmarks.registry import SUITES, Op, Shape, registry

CPU = torch.device("cpu")
TINY = measure.EFFORTS["tiny"]
OURS_AND_PYTORCH = (measure.OURS, measure.EAGER)


def results_of(*cases: dict[str, Any]) -> dict[str, Any]:
    ceilings = {"bytes_per_second": 1e10, "flops_per_second": {"float32": 1e11, "bfloat16": 1e11}}
    return {"suite": "tiny", "ceilings": ceilings, "cases": list(cases), "skipped": [], "errors": []}


def case_of(name: str, only: tuple[str, ...] = OURS_AND_PYTORCH) -> dict[str, Any]:
    op = registry()[name]
    return measure.measure(op, op.shapes["tiny"][0], CPU, TINY, only)


def test_every_op_is_registered_with_shapes_for_every_suite() -> None:
    assert list(registry()) == fgrl.backend.ops()
    for name, op in registry().items():
        assert op.name == name
        assert set(op.shapes) == set(SUITES)
        for suite, shapes in op.shapes.items():
            assert shapes or (name, suite) == ("align_edits", "gpu")
            assert len({shape.label for shape in shapes}) == len(shapes)


@pytest.mark.parametrize("name", fgrl.backend.ops())
def test_ours_is_right_timed_and_above_its_floor(name: str) -> None:
    pytest.importorskip("rapidfuzz")
    case = case_of(name)
    cell = case["variants"][measure.OURS]
    assert (cell["status"], cell["reason"]) == ("ok", "")
    for part in registry()[name].parts:
        p20, p50, p80 = (cell["seconds"][part][q] for q in ("p20", "p50", "p80"))
        assert 0 < p20 <= p50 <= p80
        assert case["floor"][part]["bytes"] > 0
    assert "wrong" not in tables.text(tables.op_table(results_of(case), name))


@pytest.mark.parametrize("name", ["gae", "whiten", "linear_logprobs"])
def test_every_shape_of_the_suite_makes_inputs_that_fit(name: str) -> None:
    op = registry()[name]
    for shape in op.shapes["tiny"]:
        inputs = op.make(shape, CPU)
        tokens = int(inputs["mask"].sum() if inputs["mask"] is not None else inputs["cu_seqlens"][-1])
        assert 0 < tokens < shape.batch * shape.length  # ragged


class TestRed:
    def test_a_wrong_output_has_no_speed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = fgrl.ops.gae

        def wrong(*args: Any, **options: Any) -> Any:
            found = right(*args, **options)
            return found._replace(advantages=found.advantages * 1.001)

        monkeypatch.setattr(fgrl.ops, "gae", wrong)
        case = case_of("gae")
        cell = case["variants"][measure.OURS]
        assert cell["status"] == "wrong"
        assert "output 0" in cell["reason"]
        assert "seconds" not in cell
        assert "peak_bytes" not in cell
        results = results_of(case)
        assert not runner.is_right(results)
        table = tables.op_table(results, "gae")
        assert table.rows[0][table.header.index(measure.OURS)] == "wrong"
        assert any("output 0" in note for note in table.notes)

    def test_a_wrong_gradient_has_no_speed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = fgrl.ops.ppo_loss

        def wrong(logprobs: torch.Tensor, *args: Any, **options: Any) -> Any:
            return right(logprobs.detach() + 1.001 * (logprobs - logprobs.detach()), *args, **options)

        monkeypatch.setattr(fgrl.ops, "ppo_loss", wrong)
        cell = case_of("ppo_loss")["variants"][measure.OURS]
        assert cell["status"] == "wrong"
        assert "gradient of logprobs" in cell["reason"]
        assert "seconds" not in cell

    def test_an_error_everywhere_is_wrong_where_pytorch_has_it_once(self) -> None:
        answer, everywhere = torch.ones(100), torch.full((100,), 1.01)
        once = torch.where(torch.arange(100) == 0, everywhere, answer)
        named = [{"output 0": tensor} for tensor in (everywhere, once, answer)]
        assert accuracy.judge_ours(*named).complaint
        assert not accuracy.judge_ours(named[1], named[1], named[2]).complaint

    def test_nan_is_wrong(self) -> None:
        nan, zero = {"output 0": torch.tensor([float("nan")])}, {"output 0": torch.zeros(1)}
        assert accuracy.judge_ours(nan, zero, zero).complaint
        assert accuracy.judge_peer(nan, zero, {}, torch.float32).complaint

    def test_a_peer_that_computes_something_else_has_no_speed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(peers, "openrlhf_gae", lambda rewards, values, mask, gamma, lam: (rewards, values))
        cell = case_of("gae", (*OURS_AND_PYTORCH, "OpenRLHF"))["variants"]["OpenRLHF"]
        assert cell["status"] == "wrong"
        assert "seconds" not in cell

    def test_a_variant_that_raises_costs_its_cell_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError("no such luck")

        monkeypatch.setattr(peers, "openrlhf_gae", broken)
        variants = case_of("gae", (*OURS_AND_PYTORCH, "OpenRLHF"))["variants"]
        assert variants["OpenRLHF"] == {"status": "failed", "reason": "RuntimeError: no such luck"}
        assert variants[measure.OURS]["status"] == "ok"


def test_a_missing_peer_is_a_gap_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "verl"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "verl", None)
    peers.load.cache_clear()
    case = case_of("whiten", (*OURS_AND_PYTORCH, "verl"))
    peers.load.cache_clear()
    assert case["variants"]["verl"]["status"] == "absent"
    table = tables.op_table(results_of(case), "whiten")
    assert table.rows[0][table.header.index("verl")] == tables.ABSENT
    assert any(note.startswith("verl, 3x17 float32: absent, verl cannot be imported") for note in table.notes)


def test_a_first_run_that_takes_too_long_is_cut_off() -> None:
    with pytest.raises(TimeoutError, match=r"longer than 0\.05 s"), measure.limited(0.05):
        time.sleep(5)
    time.sleep(0.1)  # the alarm is off again


def test_each_run_gets_inputs_that_no_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.machine, "cache_bytes", lambda device: 4096)
    op = registry()["gae"]
    inputs = op.make(Shape(3, 17), CPU)
    stopwatch = measure.Stopwatch(op, inputs, CPU)
    seen: list[int] = []

    def run(i: dict[str, Any]) -> tuple[torch.Tensor]:
        seen.append(i["rewards"].data_ptr())
        return (i["rewards"],)

    while len(seen) < 3 or seen[-1] != seen[0]:
        stopwatch(run)
    size = sum(value.nbytes for value in inputs.values() if isinstance(value, torch.Tensor))
    assert (len(set(seen)) - 1) * size >= 2 * 4096


def test_gradients_do_not_add_up_over_runs() -> None:
    op = registry()["ppo_loss"]
    inputs = op.make(Shape(3, 17), CPU)
    once = accuracy.results(op, lambda i: op.call(fgrl.ops, i), inputs)["gradient of logprobs"]
    stopwatch = measure.Stopwatch(op, inputs, CPU)
    gradients: list[torch.Tensor] = []

    def run(i: dict[str, Any]) -> Any:
        assert i["logprobs"].grad is None
        gradients.append(i["logprobs"])
        return op.call(fgrl.ops, i)

    for _ in range(2 * len(stopwatch._copies)):
        stopwatch(run)
    torch.testing.assert_close(gradients[-1].grad, once)


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_peak_memory_is_that_of_the_call() -> None:
    def run() -> torch.Tensor:
        scratch = torch.ones(40_000_000, dtype=torch.uint8)
        return scratch[:1].clone()

    peak = memory.peak(run, CPU)
    assert peak is not None
    assert 39e6 < peak < 45e6
    again = memory.peak(lambda: torch.ones(1000), CPU)
    assert again is not None
    assert again < 5e6


def test_results_on_fewer_tokens_are_checked_where_the_answer_costs_too_much() -> None:
    op = registry()["gae"]
    seen: list[int] = []

    def make(shape: Shape, device: torch.device) -> dict[str, Any]:
        seen.append(shape.batch * shape.length)
        return op.make(shape, device)

    small = Op(op.name, op.shapes, make, op.call, op.floor, checked_tokens=34)
    case = measure.measure(small, Shape(3, 17), CPU, TINY, OURS_AND_PYTORCH)
    assert seen == [51, 34]
    assert case["variants"][measure.OURS]["status"] == "ok"
