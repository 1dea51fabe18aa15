"""What the `linear_*` ops share: the rows that a mask selects, and the logits of some of them at a time.

Of a row of logits, with `z` what bias, soft-cap and temperature make of them, the ops need

    m = max z,   s = sum e^(z - m),   w = sum e^(z - m) (z - m),   z_target
    logp = z_target - m - log s,      entropy = log s - w / s

and where `g` is a loss's gradient by logp and `h` that by the entropy, its gradient by `z` is, with `x = z - m`,

    e^x (h w / s - g - h x) / s + [z is the target] g

Statistics of parts of a row add up to those of the whole, whether the parts are on one GPU or on several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import wraps
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgrl.ops._chunks import budget_bytes, rows_at_once
from fgrl.ops._library import LIBRARY, launch_with_triton
from fgrl.ops._matmul import Head

LIBRARY.define(
    "logit_statistics(Tensor logits, Tensor? bias, Tensor targets, float temperature, float? softcap) -> Tensor"
)
LIBRARY.define(
    "logit_gradient(Tensor logits, Tensor? bias, Tensor targets, Tensor grads, float temperature, float? softcap, "
    "Tensor(a!) out) -> ()"
)
LIBRARY.define("vocabulary_shard(Tensor weight, str group) -> Tensor")
launch_with_triton("logit_statistics", "linear")
launch_with_triton("logit_gradient", "linear")

_ALIGNMENT = 16  # rows of logits start where vector loads and matrix products like it


class Statistics(NamedTuple):
    """`max`, `total` and `moment`, the m, s and w of rows of logits, `[R]` each."""

    max: Tensor
    total: Tensor
    moment: Tensor

    def entropy(self) -> Tensor:
        """`[R]`, in nats."""
        return self.total.log() - self.moment / self.total

    def grads(self, logprobs: Tensor | None, entropy: Tensor | None, temperature: float) -> Tensor:
        """`[4, R]` for `logit_gradient`, from a loss's gradients by logprobs and entropy (None: it has none)."""
        zero = torch.zeros_like(self.max)
        by_logprob = zero if logprobs is None else logprobs.to(zero.dtype) / temperature
        by_entropy = zero if entropy is None else entropy.to(zero.dtype) / temperature
        constant = (by_entropy * (self.moment / self.total) - by_logprob) / self.total
        return torch.stack([self.max, constant, -by_entropy / self.total, by_logprob])


class Chunk(NamedTuple):
    """Some rows and their logits, which the next chunk overwrites."""

    rows: slice | Tensor
    """Which of all rows these are."""
    hidden: Tensor
    targets: Tensor
    logits: Tensor


class LinearOptions(NamedTuple):
    """What the operators of the `linear_*` ops take after hidden, weight, targets, bias and mask: in this order."""

    temperature: float
    """What soft-capped logits are divided by."""
    softcap: float | None
    shard: Tensor | None
    """Of `vocabulary_shard`, with `group`: the name of the process group that has the vocabulary."""
    group: str | None
    chunk_tokens: int
    """Rows of a chunk; 0: as many as the budget has room for."""
    autocast: torch.dtype | None
    """What autocast makes of the operands of products; None: they stay as they are."""


OPTIONS = "float temperature, float? softcap, Tensor? shard, str? group, SymInt chunk_tokens, ScalarType? autocast"


class LinearRows:
    """The rows of one call that its mask selects.

    Args:
        hidden: `[..., D]`.
        weight: `[V, D]`, or this process's part of it.
        targets: `[...]`.
        bias: `[V]`, or this process's part of it.
        mask: `[...]`. Finding the rows it selects makes the host wait for a GPU; None does not.
        options: the rest.
        selected: the indices of the rows the mask selects, when they are known.
        cast: of `Head`.
        other_bytes: what else a chunk has for each of its logits.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        options: LinearOptions,
        *,
        selected: Tensor | None = None,
        cast: Tensor | None = None,
        other_bytes: int = 0,
    ) -> None:
        self.hidden = hidden.reshape(-1, hidden.shape[-1])
        self.targets = targets.reshape(-1).long()
        if options.shard is not None:
            self.targets = self.targets - options.shard[0]
        self.bias = bias
        self.selected = selected if mask is None or selected is not None else mask.reshape(-1).nonzero()[:, 0]
        self.head = Head(weight, hidden, bias, options.autocast, cast)
        self.temperature, self.softcap = options.temperature, options.softcap
        self._group = None if options.group is None else _process_group(options.group)
        self.count = self.total if self.selected is None else self.selected.numel()
        """How many rows are selected."""
        self._width = -(-weight.shape[0] // _ALIGNMENT) * _ALIGNMENT
        self.at_once = options.chunk_tokens or rows_at_once(
            self.count, self._width, self._bytes_a_logit + other_bytes, budget_bytes(hidden.device), hidden.device.type
        )
        """How many of them a chunk has; the last one may have fewer."""

    @property
    def total(self) -> int:
        """How many rows there are, selected or not."""
        return self.hidden.shape[0]

    def empty(self, *shape: int) -> Tensor:
        """A tensor of the dtype of the computation, with a last dimension of all rows; 0 in those not selected."""
        make = self.hidden.new_empty if self.selected is None else self.hidden.new_zeros
        return make(*shape, self.total, dtype=self.head.dtype)

    def chunks(self, *, but_last: bool = False) -> Iterator[Chunk]:
        """All selected rows in order, `at_once` at a time, in one buffer; not the last, if `but_last`."""
        vocabulary = self.head.weight.shape[0]
        buffer = self.hidden.new_empty(min(self.at_once, self.count), self._width, dtype=self.head.dtype)
        for start in range(0, self.count - but_last * self.at_once, max(self.at_once, 1)):
            end = min(start + self.at_once, self.count)
            index = slice(start, end) if self.selected is None else self.selected[start:end]
            hidden = self.head.operand(self.hidden[index])
            logits = buffer[: hidden.shape[0], :vocabulary]
            self.head.logits(hidden, logits)
            yield Chunk(index, hidden, self.targets[index], logits)

    @property
    def _bytes_a_logit(self) -> int:
        """A logit, and its gradient where that does not take its place."""
        return self.head.dtype.itemsize + (0 if self.head.in_place else self.head.operands.itemsize)

    def statistics(self, chunk: Chunk) -> tuple[Tensor, Statistics]:
        """Log-probabilities `[R]` of the targets, and the statistics they come from."""
        return self.statistics_of(chunk.logits, self.bias, chunk.targets, self.softcap)

    def statistics_of(
        self, logits: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
    ) -> tuple[Tensor, Statistics]:
        """`statistics` of logits that still lack this bias and this soft-cap."""
        parts = torch.ops.fgrl.logit_statistics(logits, bias, targets, self.temperature, softcap)  # [4, parts, R]
        largest = parts[0].amax(0)
        self.reduce(largest, "MAX")
        step = parts[0] - largest
        is_here = (targets >= 0) & (targets < logits.shape[1])
        sums = torch.stack(
            [
                (parts[1] * step.exp()).sum(0),
                ((parts[2] + parts[1] * step) * step.exp()).sum(0),
                torch.where(is_here, parts[3].sum(0) - largest, 0),
            ]
        )
        self.reduce(sums, "SUM")
        total, moment, target = sums
        return target - total.log(), Statistics(largest, total, moment)

    def hidden_grad(self, logits_grad: Tensor) -> Tensor:
        """`[R, D]`, from the gradient by the logits of a chunk."""
        grad = self.head.hidden_grad(logits_grad)
        self.reduce(grad, "SUM")
        return grad

    def reduce(self, tensor: Tensor, operation: str) -> None:
        """All-reduce over the processes that have the vocabulary, in place: "SUM" or "MAX"."""
        if self._group is not None:
            dist.all_reduce(tensor, getattr(dist.ReduceOp, operation), group=self._group)


class Gradients:
    """Gradients by hidden states, head and bias, as far as they are wanted, gathered chunk by chunk.

    Args:
        rows: the rows.
        wants: whether those by hidden, weight and bias are wanted.
        dtypes: what they are returned in. Until then the latter two are of the dtype of the computation, if they are
            sums over several chunks.
    """

    def __init__(self, rows: LinearRows, wants: list[bool], dtypes: list[torch.dtype]) -> None:
        self._rows, self._wants, self._dtypes = rows, wants, dtypes
        self._is_first = True
        self.is_fp16 = rows.head.operands == torch.float16
        """Whether gradients by logits are, so that they must not become too small."""
        hidden, weight, dtype = rows.hidden, rows.head.weight, rows.head.dtype
        make = hidden.new_empty if rows.selected is None else hidden.new_zeros
        self.hidden = make(hidden.shape if wants[0] else 0, dtype=dtypes[0])
        # A single product may be rounded as it is written, a sum of several only at the end.
        rounds_once = rows.at_once >= rows.count and rows.head.rounds_once and dtypes[1] == rows.head.operands
        self.weight = weight.new_empty(weight.shape if wants[1] else 0, dtype=dtypes[1] if rounds_once else dtype)
        self.bias = weight.new_zeros(weight.shape[0] if wants[2] else 0, dtype=dtype)

    def add(self, chunk: Chunk, statistics: Statistics, logprobs: Tensor | None, entropy: Tensor | None) -> None:
        """Take in a chunk, given a loss's gradients by its logprobs and entropies. Its logits are overwritten."""
        rows, out = self._rows, self.buffer(chunk)
        grads = statistics.grads(logprobs, entropy, rows.temperature)
        torch.ops.fgrl.logit_gradient(
            chunk.logits, rows.bias, chunk.targets, grads, rows.temperature, rows.softcap, out
        )
        self.add_products(chunk, out)

    def buffer(self, chunk: Chunk) -> Tensor:
        """`[R, V]` in the dtype of operands, for the gradient by the logits of a chunk; it may take their place."""
        head, out = self._rows.head, chunk.logits
        if head.operands == out.dtype:
            return out
        own = out if head.in_place else out.new_empty(out.shape[0], out.stride(0), dtype=head.operands)
        return own.view(head.operands)[:, : out.shape[1]]

    def add_products(self, chunk: Chunk, logits_grad: Tensor) -> None:
        """Take in a chunk, given the gradient by its logits."""
        rows = self._rows
        if self._wants[0]:
            self.hidden[chunk.rows] = rows.hidden_grad(logits_grad).to(self.hidden.dtype)
        if self._wants[1]:
            rows.head.weight_grad(logits_grad, chunk.hidden, self.weight, add=not self._is_first)
        if self._wants[2]:
            self.bias += logits_grad.sum(0, dtype=self.bias.dtype)
        self._is_first = False

    def result(self, shape: torch.Size, factor: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients times `factor`, by hidden in the `shape` of the input; empty where they are not wanted."""
        if self._is_first:
            self.weight.zero_()
        hidden = self.hidden.reshape(shape) if self._wants[0] else self.hidden
        if factor is not None:
            for gradient in (hidden, self.weight, self.bias):
                gradient.mul_(factor)
        return hidden, self.weight.to(self._dtypes[1]), self.bias.to(self._dtypes[2])


def fake_gradients(
    hidden: Tensor, weight: Tensor, wants: list[bool], dtypes: list[torch.dtype]
) -> tuple[Tensor, Tensor, Tensor]:
    """What `Gradients.result` gives, without the numbers."""
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    first, second, third = (
        hidden.new_empty(shape if wanted else 0, dtype=dtype)
        for shape, wanted, dtype in zip(shapes, wants, dtypes, strict=True)
    )
    return first, second, third


def dtypes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[torch.dtype]:
    """Of the gradients by hidden, weight and bias."""
    return [hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype]


def saved_dtypes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[torch.dtype]:
    """What gradients wait for the backward pass in: fp16 would lose what its loss scale is there to keep."""
    return [torch.float32 if dtype == torch.float16 else dtype for dtype in dtypes(hidden, weight, bias)]


def differentiate_with_saved_grads(op: str) -> None:
    """Give `fgrl::<op>` the gradients by hidden, weight and bias that are its last three outputs.

    Its first output is the loss, and no other has a gradient.
    """
    names = [argument.name for argument in getattr(torch.ops.fgrl, op).default._schema.arguments]
    places = [names.index(name) for name in ("hidden", "weight", "bias")]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        hidden, weight, bias = (inputs[place] for place in places)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.dtypes = dtypes(hidden, weight, bias)
        ctx.save_for_backward(*output[-3:])

    @once_differentiable
    def formula(ctx: Any, loss_grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        result: list[Tensor | None] = [None] * len(names)
        if loss_grad is not None:
            for place, grad, dtype in zip(places, ctx.saved_tensors, ctx.dtypes, strict=True):
                if ctx.needs_input_grad[place]:
                    result[place] = _multiply(grad, loss_grad).to(dtype)
        return tuple(result)

    torch.library.register_autograd(f"fgrl::{op}", formula, setup_context=setup_context, lib=LIBRARY)


def _multiply(grad: Tensor, loss_grad: Tensor) -> Tensor:
    """`grad * loss_grad`, in place where nobody can ask for the gradient again: it is as large as the head."""
    if type(grad) is not Tensor or torch._C._autograd._get_current_graph_task_keep_graph():
        return grad * loss_grad
    if loss_grad.device.type == "cpu" and loss_grad == 1:
        return grad
    return grad.mul_(loss_grad)


def implement(op: str, function: Callable[..., Any]) -> None:
    """Make `function` the implementation of `fgrl::<op>` on every device, with autocast off inside it."""

    @wraps(function)
    def run(hidden: Tensor, *args: Any) -> Any:
        kind = hidden.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            return function(hidden, *args)

    LIBRARY.impl(op, run, "CompositeExplicitAutograd")


def _vocabulary_shard(weight: Tensor, group: str) -> Tensor:
    """int64 `[2]`: where this process's part of the vocabulary starts, and how large the whole is. No sync."""
    members = _process_group(group)
    sizes = torch.full((dist.get_world_size(members),), weight.shape[0], device=weight.device)
    dist.all_gather_into_tensor(sizes, sizes[:1].clone(), group=members)
    return torch.stack([sizes[: dist.get_rank(members)].sum(), sizes.sum()])


LIBRARY.impl("vocabulary_shard", _vocabulary_shard, "CompositeExplicitAutograd")


@torch.library.register_fake("fgrl::vocabulary_shard", lib=LIBRARY)
def _vocabulary_shard_fake(weight: Tensor, group: str) -> Tensor:
    return weight.new_empty(2, dtype=torch.int64)


def _process_group(name: str) -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]
