"""`report.html`: one self-contained page with the table, the curves and the token heat map. All text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fgrl.data.output import write_text
from fgrl.demo.report import policy_rows, win_rows
from fgrl.demo.samples import Sample, ScoredText
from fgrl.demo.svg import line_chart
from fgrl.pages.document import document, table

_STYLE = """
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.note { color: #555c66; font-size: .92rem; } .warning { background: #fff3d6; padding: .4rem .8rem; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
.sample { border-top: 1px solid #d8dbe0; padding: .8rem 0; }
.who { color: #555c66; font-size: .85rem; margin-top: .5rem; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; }
.t { border-radius: 2px; } .wrong { text-decoration: underline wavy #b00020 1px; text-underline-offset: .25em; }
"""
_POLICY_COLOURS = {"fine_grained": "#1764ab", "sequence": "#d1740f", "start": "#6b7280"}
_FULL_SHADE = 0.75


def write_page(path: Path, report: Mapping[str, Any], samples: Sequence[Sample]) -> None:
    """Write the page."""
    write_text(path, render(report, samples))


def render(report: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """The page as text."""
    warned = "".join(f'<p class="warning">Warning: {escape(sentence)}.</p>' for sentence in report["warnings"])
    body = f"""<h1>From minimal edits to a fine-grained policy</h1>
{_introduction(report)}
<h2>Policies on {report["prompts"]} held-out prompts</h2>
{table(*policy_rows(report))}
{table(["win rate", ""], [list(row) for row in win_rows(report)])}
{warned}
{_how_judged(report)}
<h2>Training</h2>
<div class="charts">
{_charts(report)}
</div>
<h2>Reward models</h2>
{_reward_table(report)}
<h2>Token rewards on the first {len(samples)} held-out prompts</h2>
<p class="note">Red: the token reward model wants the token less; blue: more. Underlined: words that the annotator would
change. Point at a token for its reward.</p>
{_heat_map(samples)}
<h2>Time and versions</h2>
{table(["stage", "seconds"], [[name, f"{value:.1f}"] for name, value in report["seconds_per_stage"].items()])}
<p class="note">{report["seconds"]:.0f} s in all; {escape(_versions(report))}. Every setting is in
<code>report.json</code>.</p>"""
    return document(f"fgrl demo, seed {report['seed']}", body, style=_STYLE)


def _introduction(report: Mapping[str, Any]) -> str:
    text = report["config"]["text"]
    corpus = report["corpus"]
    return f"""<p>A small transformer was pre-trained on CPython's language reference with
{100 * text["misspelled_share"]:.0f} % of the words misspelled. It answered prompts; an annotator (a spell checker)
edited {report["pairs"]} of its responses as little as it could. From these edits came a token reward model and, on
the same pairs, a reward model that scores whole responses. Each drove PPO from the same start for the same number of
steps.</p>
<p class="note">{corpus["training_words"]:,} words from {corpus["training_topics"]} topics for training,
{corpus["heldout_words"]:,} words from {corpus["heldout_topics"]} other topics for the prompts below; a lexicon of
{corpus["lexicon"]:,} words. Seed {report["seed"]}.</p>"""


def _how_judged(report: Mapping[str, Any]) -> str:
    ppo = report["config"]["ppo"]
    return f"""<p class="note">Wrong words are those outside the lexicon of the clean prose. Win rate: on each prompt
the response with fewer wrong words per word wins, a tie counts half; fluency does not enter it and is reported beside
it. Perplexity is per token under a model of the same size that was trained on the clean prose of the training topics
and drives nothing; a misspelling is expensive there, so &ldquo;corrected&rdquo; is the perplexity after the annotator
corrected the text: fluency apart from spelling. Distinct-2 is the share of different word pairs: low means repetitive
text. Human: how the prose itself goes on. KL: nats a response from the start. For both policies
one controller moves the KL coefficient so that they end near {ppo["kl_target"]:g} nats a response: they are compared at
about the same distance from the start. GAE's lambda is {ppo["fine_grained_lam"]:g} where every token has a reward and
{ppo["sequence_lam"]:g} where one reward at the end has to reach every token; everything else is the same.</p>"""


def _charts(report: Mapping[str, Any]) -> str:
    ppo = report["ppo"]
    charts = []
    for key, title in (
        ("errors_per_100_words", "Wrong words per 100, training prompts"),
        ("kl_per_response", "KL from the start, nats a response"),
    ):
        lines = {name: (_POLICY_COLOURS[name], list(enumerate(run[key], 1))) for name, run in ppo.items()}
        charts.append(line_chart(title, "rollout", lines))
    steps = report["config"]["pretrain"]["steps"]
    losses = {
        name: (colour, _spread(report["pretraining"][name]["loss"], steps))
        for name, colour in (("start", "#6b7280"), ("clean_prose_model", "#2e8540"))
    }
    charts.append(line_chart("Pre-training loss, nats a token", "step", losses))
    curves = {
        level: (_POLICY_COLOURS[name], [tuple(point) for point in report["reward_model"][level]["curve"]])
        for level, name in (("token", "fine_grained"), ("sequence", "sequence"))
    }
    charts.append(line_chart("Reward model loss", "step", curves))
    return "\n".join(charts)


def _spread(values: Sequence[float], steps: int) -> list[tuple[float, float]]:
    return [(1 + i * steps / len(values), value) for i, value in enumerate(values)]


def _reward_table(report: Mapping[str, Any]) -> str:
    rows = [
        [level, *(f"{report['reward_model'][level][key]:.3f}" for key in ("pair_accuracy", "edit_auc"))]
        for level in ("token", "sequence")
    ]
    note = """<p class="note">Pairs that answer held-out prompts. Pair accuracy: how often the edited response scores
above the original. Edit AUC: how well the reward of a token tells the tokens that were edited away from those that were
kept.</p>"""
    return table(["level", "pair accuracy", "edit AUC"], rows) + note


def _heat_map(samples: Sequence[Sample]) -> str:
    magnitudes = sorted(abs(reward) for sample in samples for text in sample.responses for reward in text.rewards)
    scale = magnitudes[int(0.95 * (len(magnitudes) - 1))] if magnitudes else 1.0
    return "\n".join(
        f'<div class="sample"><div><b>{escape(sample.prompt)}</b> &hellip;</div>\n'
        + "\n".join(_scored(text, scale or 1.0) for text in sample.responses)
        + "</div>"
        for sample in samples
    )


def _scored(text: ScoredText, scale: float) -> str:
    spans = "".join(map(_token, text.tokens, text.rewards, text.wrong, [scale] * len(text.tokens)))
    corrected = ""
    if text.policy == "start":
        corrected = f'<div class="who">corrected by the annotator</div><div>{escape(text.corrected)}</div>'
    who = escape(text.policy.replace("_", "-"))
    return f'<div class="who">{who}</div><div class="tokens">{spans}</div>{corrected}'


def _token(token: str, reward: float, wrong: bool, scale: float) -> str:
    shade = _FULL_SHADE * min(1.0, abs(reward) / scale)
    colour = "200,50,40" if reward < 0 else "30,100,200"
    kind = "t wrong" if wrong else "t"
    style = f"background:rgba({colour},{shade:.2f})"
    return f'<span class="{kind}" style="{style}" title="{reward:+.3f}">{escape(token)}</span>'


def _versions(report: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in report["versions"].items())
