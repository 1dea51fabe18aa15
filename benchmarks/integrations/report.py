"""The measured part of the README's table of hosts and of docs/integrations.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import tables, timing
from benchmarks.results import Results, newest

_MIB = 2**20
_CONDITIONS = (
    "Medians of the thread's own time in interleaved rounds on one thread, beside other work on the machine; peaks "
    "of the resident set beyond what was there before."
)


def hosts_section() -> str:
    """One row a host: the line to write, what it brings, and one figure."""
    header = ["your trainer", "the line", "what it brings", "measured"]
    rows = [
        ["[TRL](docs/integrations.md#trl) 1.16", "`FineGrainedGRPOTrainer` for `GRPOTrainer`, or `patch_logprobs()`",
         "token rewards in GRPO; log-probabilities without logits", _trl_figure()],
        ["[verl](docs/integrations.md#verl) 0.9.1", "`...model.external_lib=fgrl.integrations.verl`",
         "token rewards; GAE, losses and a head without logits", _verl_figure()],
        ["[OpenRLHF](docs/integrations.md#openrlhf) 0.11.2", "`python -m fgrl.integrations.openrlhf` for its launcher",
         "token rewards; GAE and losses that skip holes", _gae_figure("OpenRLHF")],
        ["[your own loop](docs/integrations.md#a-plain-loop)", "`fgrl.ops.<op>(...)`", "one op at a time",
         "[the ops](#the-ops-against-what-people-use)"],
    ]  # fmt: skip
    return "\n".join(["| " + " | ".join(row) + " |" for row in (header, ["---"] * 4, *rows)])


def trl_section() -> str:
    """TRL's log-probability step, stock and patched."""
    return _section(
        "trl_logprobs",
        "TRL",
        "The log-probability step of GRPO: forward and backward pass of the fused head with entropy, fp32, a backbone "
        "of one narrow layer included.",
        ["head", "sequences x (prompt + completion)", "TRL", "fgrl", "faster", "TRL's peak", "fgrl's peak", "less"],
        _trl_row,
    )


def verl_section() -> str:
    """What the adapter replaces in verl, against verl's own."""
    return _section(
        "verl_functions",
        "verl",
        "Each function of verl and what takes its place, fp32: `gae` is all that the driver computes of a batch; "
        "losses and head are forward and backward.",
        ["function", "shape", "verl", "fgrl", "faster", "verl's peak", "fgrl's peak"],
        _verl_row,
    )


def _section(part: str, host: str, what: str, header: list[str], row: Callable[[dict[str, Any]], list[str]]) -> str:
    """The newest result that has a `part`: what was measured and how, the table, and its source."""
    found = newest(part)
    if found is None:
        command = f"python -m benchmarks.integrations.{part} --out FILE"
        return f"No result yet. `{command}` measures, in {host}'s environment."
    name, results = found
    where = results["environment"]
    return "\n\n".join(
        [
            f"{what} {_CONDITIONS}",
            tables.markdown(tables.Table(header, [row(entry) for entry in results[part]], [])),
            f"Source: [`benchmarks/results/{name}`]({{root}}benchmarks/results/{name}): {timing.processor(where)}, "
            f"torch {where['torch']}, {host} {where[host.lower()]}, commit {where['commit']}.",
        ]
    )


def _verl_row(row: dict[str, Any]) -> list[str]:
    seconds, peaks = row["seconds"], row["peak_bytes"]
    times = [tables.time(seconds["verl"]), tables.time(seconds["fgrl"])]
    ratio = f"{tables.digits(seconds['verl'] / seconds['fgrl'])}x"
    sizes = [tables.size(peaks["verl"]), tables.size(peaks["fgrl"])]
    return [f"`{row['function']}`", row["shape"], *times, ratio, *sizes]


def _trl_row(row: dict[str, Any]) -> list[str]:
    seconds, peaks = row["seconds"], row["peak_bytes"]
    return [
        f"{row['model']}, V={row['vocabulary']}",
        f"{row['batch']} x ({row['prompt']} + {row['completion']})",
        f"{seconds['trl']:.2f} s",
        f"{seconds['fgrl']:.2f} s",
        f"{seconds['trl'] / seconds['fgrl']:.2f}x",
        f"{peaks['trl'] / _MIB:.0f} MiB",
        f"{peaks['fgrl'] / _MIB:.0f} MiB",
        f"{peaks['trl'] / peaks['fgrl']:.1f}x",
    ]


def _trl_figure() -> str:
    found = newest("trl_logprobs")
    if found is None:
        return "not yet"
    rows = found[1]["trl_logprobs"]
    memory = sorted(row["peak_bytes"]["trl"] / row["peak_bytes"]["fgrl"] for row in rows)
    time = sorted(row["seconds"]["trl"] / row["seconds"]["fgrl"] for row in rows)
    vocabularies = " and ".join(str(size) for size in sorted({row["vocabulary"] for row in rows}))
    gains = f"{_range(memory)} less memory, {_range(time)} faster than TRL's"
    return f"log-probability step at V = {vocabularies}, CPU: {gains}"


def _verl_figure() -> str:
    found = newest("verl_functions")
    row = None
    if found is not None:
        rows = found[1]["verl_functions"]
        row = next((row for row in rows if (row["function"], row["shape"]) == ("gae", "256x8192")), None)
    if row is None:
        return _gae_figure("verl")
    times = row["seconds"]
    return f"driver's GAE of 256 x 8192: {tables.digits(times['verl'] / times['fgrl'])}x faster than verl's"


def _gae_figure(peer: str) -> str:
    """The advantages of 256 responses of 2048 tokens, which these hosts compute on the CPU."""
    found = newest("cases", "cpu")
    case = None if found is None else _case(found[1], "gae", "256x2048 float32")
    if case is None or case["variants"].get(peer, {}).get("status") != "ok":
        return "not yet"
    ours, theirs = (case["variants"][name]["seconds"]["forward"]["p50"] for name in ("fgrl", peer))
    return f"GAE of 256 x 2048, CPU: {tables.digits(theirs / ours)}x faster than {peer}'s"


def _case(results: Results, op: str, shape: str) -> dict[str, Any] | None:
    return next((case for case in results["cases"] if case["op"] == op and case["shape"] == shape), None)


def _range(values: list[float]) -> str:
    low, high = f"{values[0]:.1f}", f"{values[-1]:.1f}"
    return f"{low}x" if low == high else f"{low} to {high}x"
