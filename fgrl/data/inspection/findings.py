"""What is off in a file of edits: each count with the share of the rows up to which it is taken for normal."""

from __future__ import annotations

from dataclasses import dataclass

from fgrl.data.inspection.summary import Summary


@dataclass(frozen=True)
class Finding:
    """One count.

    Attributes:
        name: What is counted.
        count: How many rows.
        share: Of all rows.
        limit: The largest share that is normal.
        lines: The first rows in question, where they are known.
    """

    name: str
    count: int
    share: float
    limit: float
    lines: tuple[int, ...] = ()

    @property
    def off(self) -> bool:
        """Whether there are more than is normal."""
        return self.share > self.limit


def findings(summary: Summary) -> list[Finding]:
    """Every count that may be off, whether it is or not."""
    rows = max(summary.rows, 1)

    def finding(name: str, count: int, limit: float, of: int = rows) -> Finding:
        return Finding(name, count, count / max(of, 1), limit, tuple(summary.examples.get(name, ())))

    result = [
        finding("bad rows", summary.bad, 0.0, summary.rows + summary.bad),
        finding("no rows at all", int(not summary.rows), 0.0),
        finding("pairs without change", summary.unchanged, 0.5),
        finding(f"rewrites (more than {summary.max_edit_share:.0%} of the words)", summary.rewrites, 0.05),
        finding("responses emptied", summary.emptied, 0.01),
        finding("duplicates", summary.duplicates, 0.01),
        finding("near duplicates", summary.near_duplicates, 0.05),
        finding("held-out prompts", summary.leaked, 0.0),
    ]
    if summary.tokens is not None:
        result += [
            finding("responses cut by truncation", summary.tokens.responses_cut, 0.01),
            finding("edits lost by truncation", summary.tokens.edits_lost, 0.001),
        ]
    if summary.agreement is not None:
        disagreement = 1 - summary.agreement.kappa
        result.append(Finding("disagreement of annotators (1 - kappa)", summary.agreement.pairs, disagreement, 0.8))
    return result
