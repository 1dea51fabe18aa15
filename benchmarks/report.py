"""Writes the README's tables and its figure from the committed results, so that no number there is typed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import end_to_end, tables, timing
from benchmarks.integrations.report import hosts_section, trl_section, verl_section
from benchmarks.results import COMMITTED, Results, newest
from fgrl.data.output import write_text
from fgrl.demo.report import policy_rows, win_rows
from fgrl.demo.svg import line_chart

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "demo.svg"
_COLOURS = {"fine_grained": "#1764ab", "sequence": "#d1740f"}
_PEERS = ("rapidfuzz", "hinted", "Levenshtein", "difflib")
_NOT_YET = {
    "cpu": "No result yet. `make results` measures.",
    "gpu": "No result yet: no GPU was at hand. `bash benchmarks/gpu.sh OUT` measures on yours, in under 9 minutes.",
}


def latest(kind: str) -> tuple[str, dict[str, Any]]:
    """Name and content of the newest `<kind>-<device>-<date>.json`.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted(COMMITTED.glob(f"{kind}-*.json"), key=lambda path: path.stem[-10:])
    if not paths:
        raise FileNotFoundError(f"benchmarks/results has no {kind}-*.json")
    return paths[-1].name, json.loads(paths[-1].read_text(encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    return tables.markdown(tables.Table(header, rows, []))


def demo_section() -> str:
    """What `make demo` found with the default seed, and with the others that were run."""
    name, results = latest("demo")
    default, *others = results["runs"]
    header, rows = policy_rows(default)
    wins = ", ".join(f"{who} {rate}" for who, rate in win_rows(default))
    token, sequence = default["reward_model"]["token"], default["reward_model"]["sequence"]
    seeds = [
        [
            str(run["seed"]),
            *(
                f"{run['policy'][policy]['errors_per_100_words']:.2f}"
                for policy in ("start", "sequence", "fine_grained")
            ),
            f"{run['policy']['fine_grained']['perplexity'] / run['policy']['start']['perplexity']:.2f}",
            f"{run['win_rate']['fine_grained_vs_sequence']:.3f}",
            f"{token_auc(run):.3f}",
            f"{run['seconds']:.0f}",
        ]
        for run in (default, *others)
    ]
    warned = "".join(f"\n\nThe demo's own warning: {sentence}." for sentence in default["warnings"])
    return "\n\n".join(
        [
            f"Seed {default['seed']}, {default['prompts']} held-out prompts, {default['pairs']} edited pairs; win "
            f"rates: {wins}. Token reward model: edit AUC {token['edit_auc']:.3f}, pair accuracy "
            f"{token['pair_accuracy']:.3f}; sequence-level one: pair accuracy {sequence['pair_accuracy']:.3f}.",
            table(header, rows) + warned,
            "All seeds that were run:",
            table(
                ["seed", "start", "sequence", "fine-grained", "perplexity / start's", "fine-grained vs sequence",
                 "edit AUC", "seconds"],
                seeds,
            ),
            f"Source: [`benchmarks/results/{name}`](benchmarks/results/{name}), {results['where']}.",
        ]
    )  # fmt: skip


def token_auc(run: Mapping[str, Any]) -> float:
    """Edit AUC of a run's token reward model."""
    return float(run["reward_model"]["token"]["edit_auc"])


def align_section() -> str:
    """The edit alignment table: how many times longer the peers take."""
    found = newest("align_edits")
    if found is None:
        return _NOT_YET["cpu"]
    name, results = found
    data = results["align_edits"]
    where = data["environment"]
    rows = []
    for cell in data["cells"]:
        times = cell["microseconds"]
        ratios = [f"{tables.digits(cell['ratios'][peer])}x" if peer in cell["ratios"] else "" for peer in _PEERS]
        goal = f"{cell['goal']:g}x" + ("" if cell["met"] else ", **missed**")
        lists = f"{tables.digits(times['rapidfuzz'] / times['fgrl lists'])}x"
        threads = f"{times['wall 1 threads'] / times['wall 2 threads']:.2f}x"
        rows.append([cell["cell"], f"{times['fgrl']:.2f}", *ratios, goal, lists, threads])
    header = ["tokens, edits", "fgrl, µs a pair", "rapidfuzz", "with score_hint", "python-Levenshtein", "difflib"]
    return "\n\n".join(
        [
            "How many times longer the others take on the same pairs, one thread each, medians of the thread's "
            f"processor time in interleaved rounds: rapidfuzz {where['rapidfuzz']} `editops` (plain, and told the "
            f"distance), python-Levenshtein {where['levenshtein']} `editops`, difflib. They get lists, the only form "
            "they take; fgrl gets packed int32 tensors. The last two columns: rapidfuzz against fgrl on the same "
            "lists, and one thread against two by the clock on the wall.",
            table([*header, "goal", "on lists", "2 threads"], rows),
            f"Source: [`benchmarks/results/{name}`](benchmarks/results/{name}): {timing.processor(where)}, Python "
            f"{where['python']}, torch {where['torch']}.",
        ]
    )


def figure() -> str:
    """Wrong words over PPO, from the default seed's run."""
    _, results = latest("demo")
    run = results["runs"][0]
    lines = {name: (_COLOURS[name], list(enumerate(run["ppo"][name]["errors_per_100_words"], 1))) for name in _COLOURS}
    return line_chart("Wrong words per 100, as PPO goes on", "rollout of 64 responses", lines) + "\n"


def ops_section(kind: str) -> str:
    """One line a case of the newest result on a CPU or a GPU."""
    found = newest("cases", kind)
    if found is None:
        return _NOT_YET[kind]
    name, results = found
    return "\n\n".join([_conditions(results), tables.markdown(tables.summary_table(results)), _source(name, results)])


def full_section(kind: str) -> str:
    """A table an op, with every pass and every peer."""
    found = newest("cases", kind)
    if found is None:
        return _NOT_YET[kind]
    name, results = found
    parts = [_conditions(results)]
    for op in dict.fromkeys(case["op"] for case in results["cases"]):
        parts += [f"### `{op}`", tables.markdown(tables.op_table(results, op))]
    return "\n\n".join([*parts, _source(name, results)])


def step_section(kind: str) -> str:
    """The whole PPO update step."""
    found = newest("end_to_end", kind)
    if found is None:
        return _NOT_YET[kind]
    name, results = found
    step = results["end_to_end"]
    return "\n\n".join([end_to_end.conditions(step), tables.markdown(end_to_end.table(step)), _source(name, results)])


def _conditions(results: Results) -> str:
    where, ceilings = results["environment"], results["ceilings"]
    products = ", ".join(
        f"{rate / 1e12:.2f} TFLOP/s in {dtype}" for dtype, rate in ceilings["flops_per_second"].items()
    )
    threads = "" if results["suite"] == "gpu" else f", {where['threads']} threads"
    peers = ", ".join(f"{name} {version}" for name, version in where["peers"].items())
    return (
        f"{timing.processor(where)}{threads}; copies {ceilings['bytes_per_second'] / 1e9:.1f} GB/s and multiplies "
        f"{products}, measured in the same run. Medians; the others' times are multiples of ours. "
        f"Peers: {peers or 'none'}."
    )


def _source(name: str, results: Results) -> str:
    where = results["environment"]
    driver = f", driver {where['driver']}" if "driver" in where else ""
    return (
        f"Source: [`benchmarks/results/{name}`]({{root}}benchmarks/results/{name}), commit {where['commit']}, Python "
        f"{where['python']}, torch {where['torch']}, triton {where['triton']}{driver}."
    )


SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "demo": demo_section,
        "hosts": hosts_section,
        "align_edits": align_section,
        "ops-cpu": lambda: ops_section("cpu"),
        "ops-gpu": lambda: ops_section("gpu"),
        "step-cpu": lambda: step_section("cpu"),
        "step-gpu": lambda: step_section("gpu"),
    },
    "docs/benchmarks.md": {"full-cpu": lambda: full_section("cpu"), "full-gpu": lambda: full_section("gpu")},
    "docs/integrations.md": {"trl": trl_section, "verl": verl_section},
}


def render(text: str, page: str = "README.md") -> str:
    """The page's text with everything between its markers written anew.

    Raises:
        ValueError: the page lacks the markers of a section.
    """
    root = "../" * page.count("/")
    for marker, section in SECTIONS[page].items():
        pattern = re.compile(rf"(<!-- {marker}:start -->\n).*?(<!-- {marker}:end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{page} has no markers for {marker!r}")
        content = section().replace("{root}", root)
        text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def update() -> None:
    """Write every page and the demo's figure."""
    for page in SECTIONS:
        path = ROOT / page
        write_text(path, render(path.read_text(encoding="utf-8"), page))
    write_text(FIGURE, figure())
