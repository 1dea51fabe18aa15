"""`linear_topk_kl`: reverse KL from the 64 likeliest tokens of a teacher, and one class for the rest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.ops import linear_kl, linear_logprobs
from benchmarks.ops._inputs import nbytes
from benchmarks.registry import Floor, Inputs, Op, Outputs, Shape
from fgrl.types import TAIL_FLOOR

COUNT = 64


def make(shape: Shape, device: torch.device) -> Inputs:
    inputs = linear_kl.make(shape, device)
    logits = F.linear(inputs.pop("teacher_hidden").float(), inputs.pop("teacher_weight").float())
    inputs["teacher_logprobs"], inputs["teacher_ids"] = logits.log_softmax(-1).topk(min(COUNT, shape.vocab - 1))
    return inputs


def call(ops: Any, inputs: Inputs) -> Outputs:
    tensors = (inputs[name] for name in ("hidden", "weight", "teacher_ids", "teacher_logprobs", "mask"))
    return (ops.linear_topk_kl(*tensors).loss,)


def eager(inputs: Inputs) -> Outputs:
    """Logits, log-softmax, gather, and 1 - sum of probabilities as the tail, as trainers write it."""
    mask = inputs["mask"]
    teacher = inputs["teacher_logprobs"][mask]
    logits = F.linear(inputs["hidden"][mask], inputs["weight"]).to(teacher.dtype)
    student = torch.log_softmax(logits, -1).gather(-1, inputs["teacher_ids"][mask])
    tails = [(1 - side.exp().sum(-1, keepdim=True)).clamp(min=TAIL_FLOOR).log() for side in (student, teacher)]
    ours, theirs = torch.cat([student, tails[0]], -1), torch.cat([teacher, tails[1]], -1)
    return ((ours.exp() * (ours - theirs)).sum() / inputs["tokens"],)


def floor(inputs: Inputs) -> Floor:
    """Three products: the logits, and the two gradients."""
    tokens, (vocab, width) = int(inputs["mask"].sum()), inputs["weight"].shape
    operands = tokens * width * inputs["hidden"].element_size() + nbytes(inputs["weight"])
    product = 2.0 * tokens * vocab * width
    return Floor(operands, 2 * operands, product, 2 * product)


OP = Op(
    name="linear_topk_kl",
    shapes=linear_logprobs.OP.shapes,
    make=make,
    call=call,
    floor=floor,
    gradients=("hidden", "weight"),
    eager=eager,
    checked_tokens=1024,
)
