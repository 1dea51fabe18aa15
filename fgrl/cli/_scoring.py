"""Token rewards of rows of text: what `fgrl score` computes, before it is printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fgrl.data import EditedPair, PairReader
from fgrl.data.conversations import check_prompt, check_tools, split_response
from fgrl.data.fields import Row, check_text, find_field, missing_field
from fgrl.data.responses import RESPONSE_NAMES
from fgrl.data.rows import OnError, RowReader, encode_rows

if TYPE_CHECKING:
    from fgrl.data import EncodedPair, PairEncoder
    from fgrl.models import TokenRewardModel
    from fgrl.trainer.reward_metrics import RewardMetrics


@dataclass(frozen=True)
class Response:
    """A row to score: an edited pair, or one response alone (`edited` is then its `original` again)."""

    pair: EditedPair
    alone: bool


@dataclass(frozen=True)
class ScoredSide:
    """One response, token by token.

    Attributes:
        tokens: text of each token; a token that ends inside a character is empty and the last of them has it whole.
        rewards: of each token.
        edits: whether the edit changed it; None for a response without an edited counterpart.
        errors: whether a human marked it as wrong; None where nobody looked.
    """

    tokens: list[str]
    rewards: list[float]
    edits: list[bool] | None = None
    errors: list[bool] | None = None

    def edited_reward(self) -> float:
        """Sum of the rewards of the edited tokens."""
        return sum(reward for reward, edit in zip(self.rewards, self.edits or [], strict=False) if edit)


@dataclass(frozen=True)
class ScoredRow:
    """A scored row: one side, or the original and the edited one."""

    line: int
    prompt: str | list[dict[str, str]]
    original: ScoredSide
    edited: ScoredSide | None

    @property
    def margin(self) -> float | None:
        """Rewards of the edited tokens after the edit minus those before it; None without an edit."""
        return None if self.edited is None else self.edited.edited_reward() - self.original.edited_reward()

    def as_json(self) -> dict[str, Any]:
        """The row as plain data."""
        sides = (
            {"response": self.original} if self.edited is None else {"original": self.original, "edited": self.edited}
        )
        record: dict[str, Any] = {"line": self.line, "prompt": self.prompt}
        for name, side in sides.items():
            record[name] = {key: value for key, value in vars(side).items() if value is not None}
        if self.edited is not None:
            record["margin"] = self.margin
        return record


class ResponseReader(RowReader[Response]):
    """Rows with `original` and `edited` (see `fgrl.data.read_pairs`), or with one `response`.

    Args:
        source: as in `read_pairs`.
        on_error: "raise" or "skip".
        columns: where a field (prompt, original, edited, error_spans, response) is called something else.
    """

    def __init__(self, source: Any, *, on_error: OnError = "raise", columns: Mapping[str, str] | None = None) -> None:
        super().__init__(source, on_error=on_error, columns=columns)
        self._pairs = PairReader([], columns={key: name for key, name in self.columns.items() if key != "response"})

    def convert(self, row: Row, number: int) -> Response:
        found = find_field(row, "response", RESPONSE_NAMES, self.columns)
        is_pair = find_field(row, "original", ("rejected",), self.columns) is not None
        if is_pair and "response" not in self.columns:
            return Response(self._pairs.convert(row, number), alone=False)
        if found is None:
            raise ValueError(missing_field(row, "response", self.columns) + " (or 'original' and 'edited')")
        if isinstance(found[1], list):
            turns, text = split_response(found[1], found[0])
            tools = check_tools(row.get("tools"), "tools")
            checked = self._pairs.joined_prompt(row, {found[0]: turns})
            return Response(EditedPair(checked, text, text, line=number, tools=tools), alone=True)
        text = check_text(found[1], found[0])
        prompt = find_field(row, "prompt", ("question",), self.columns)
        checked = "" if prompt is None else check_prompt(prompt[1], prompt[0])
        tools = check_tools(row.get("tools"), "tools") if isinstance(checked, list) else None
        return Response(EditedPair(checked, text, text, line=number, tools=tools), alone=True)


def score_rows(
    model: TokenRewardModel,
    encoder: PairEncoder,
    reader: ResponseReader,
    rows: Iterable[Response],
    *,
    batch_size: int,
    metrics: RewardMetrics | None = None,
) -> Iterator[ScoredRow]:
    """Score the `rows` of `reader` in batches, in order; edited pairs are added to `metrics`.

    A row that cannot be encoded, such as messages that the chat template refuses, is a bad row of `reader`.
    """

    def encode(some: list[Response]) -> list[EncodedPair]:
        return encoder([row.pair for row in some])

    iterator = iter(rows)
    while taken := list(islice(iterator, batch_size)):
        usable = encode_rows(reader, encode, [(row.pair.line, row) for row in taken])
        if not usable:
            continue
        batch, encoded = [row for row, _ in usable], [pair for _, pair in usable]
        sequences = [(pair.prompt_ids, pair.original_ids) for pair in encoded]
        sequences += [
            (pair.prompt_ids, pair.edited_ids) for row, pair in zip(batch, encoded, strict=True) if not row.alone
        ]
        rewards = _rewards(model, sequences)
        edited = iter(rewards[len(batch) :])
        for row, pair, original in zip(batch, encoded, rewards, strict=False):
            other = None if row.alone else next(edited)
            scored = _scored(encoder.tokenizer, row, pair, original, other)
            if metrics is not None and scored.edited is not None:
                _add(metrics, scored)
            yield scored


def token_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Text of each token; together they are the decoded text.

    Tokens are decoded after the ones before them, as a sentencepiece decoder drops the space in front of the first. A
    byte-level token can end inside a character: its text is then empty, and the token that completes it has the whole.
    """
    pieces, start, end = [], 0, 0
    for index in range(len(ids)):
        before = _decode(tokenizer, ids[start:end])
        text = _decode(tokenizer, ids[start : index + 1])
        complete = not text.endswith("\ufffd") or index == len(ids) - 1
        if complete:
            start, end = end, index + 1
        pieces.append(text[len(before) :] if complete else "")
    return pieces


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


@torch.no_grad()
def _rewards(model: TokenRewardModel, sequences: list[tuple[list[int], list[int]]]) -> list[list[float]]:
    """Rewards of the response tokens of `(prompt, response)` sequences."""
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    width = max(*lengths, 1)
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    for row, (prompt, response) in zip(ids, sequences, strict=True):
        row[: len(prompt) + len(response)] = torch.tensor([*prompt, *response], dtype=torch.int64)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    rewards: Tensor = model(ids.to(model.device), mask.to(model.device)).cpu()
    return [
        row[len(prompt) : len(prompt) + len(response)].tolist()
        for row, (prompt, response) in zip(rewards, sequences, strict=True)
    ]


def _scored(
    tokenizer: Any, row: Response, pair: EncodedPair, original: list[float], edited: list[float] | None
) -> ScoredRow:
    before = ScoredSide(
        token_pieces(tokenizer, pair.original_ids),
        original,
        None if edited is None else list(map(bool, pair.original_edits)),
        None if pair.original_errors is None else list(map(bool, pair.original_errors)),
    )
    after = None
    if edited is not None:
        after = ScoredSide(token_pieces(tokenizer, pair.edited_ids), edited, list(map(bool, pair.edited_edits)))
    return ScoredRow(row.pair.line, row.pair.prompt, before, after)


def _add(metrics: RewardMetrics, row: ScoredRow) -> None:
    before, after = row.original, row.edited
    errors = before.errors
    width = len(before.rewards)
    metrics.update(
        margins=torch.tensor([row.margin]),
        has_edits=torch.tensor([any(before.edits or []) or any((after.edits if after else None) or [])]),
        rewards=torch.tensor([before.rewards]).reshape(1, width),
        mask=torch.ones(1, width, dtype=torch.bool),
        edits=torch.tensor([before.edits or []], dtype=torch.bool).reshape(1, width),
        errors=torch.tensor([errors or [False] * width], dtype=torch.bool).reshape(1, width),
        has_errors=torch.tensor([errors is not None]),
    )
