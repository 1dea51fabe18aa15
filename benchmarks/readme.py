"""Writes the README's tables and its figure from the committed results, so that no number there is typed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgrl.demo.report import policy_rows, win_rows
from fgrl.demo.svg import line_chart

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURE = ROOT / "docs" / "demo.svg"
_COLOURS = {"fine_grained": "#1764ab", "sequence": "#d1740f"}
_PEERS = ("rapidfuzz", "hinted", "Levenshtein", "difflib")


def latest(kind: str) -> tuple[str, dict[str, Any]]:
    """Name and content of the newest `<kind>-<device>-<date>.json`.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted(RESULTS.glob(f"{kind}-*.json"), key=lambda path: path.stem[-10:])
    if not paths:
        raise FileNotFoundError(f"benchmarks/results has no {kind}-*.json")
    return paths[-1].name, json.loads(paths[-1].read_text(encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
    name, results = latest("align_edits")
    data = results["align_edits"]
    where = data["environment"]
    rows = []
    for cell in data["cells"]:
        times = cell["microseconds"]
        ratios = [f"{cell['ratios'][peer]:.1f}x" if peer in cell["ratios"] else "" for peer in _PEERS]
        goal = f"{cell['goal']:g}x" + ("" if cell["met"] else ", **missed**")
        lists = f"{times['rapidfuzz'] / times['fgrl lists']:.1f}x"
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
            f"Source: [`benchmarks/results/{name}`](benchmarks/results/{name}): {where['cpu']}, Python "
            f"{where['python']}, torch {where['torch']}.",
        ]
    )


def figure() -> str:
    """Wrong words over PPO, from the default seed's run."""
    _, results = latest("demo")
    run = results["runs"][0]
    lines = {name: (_COLOURS[name], list(enumerate(run["ppo"][name]["errors_per_100_words"], 1))) for name in _COLOURS}
    return line_chart("Wrong words per 100, as PPO goes on", "rollout of 64 responses", lines) + "\n"


def render(text: str) -> str:
    """README text with everything between its markers written anew."""
    for marker, section in (("demo", demo_section), ("align_edits", align_section)):
        pattern = re.compile(rf"(<!-- {marker}:start -->\n).*?(<!-- {marker}:end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no markers for {marker!r}")
        content = section()
        text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def update() -> None:
    """Write README.md and the figure."""
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text(encoding="utf-8")), encoding="utf-8")
    FIGURE.write_text(figure(), encoding="utf-8")
