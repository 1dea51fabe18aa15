"""`linear_kl`: generalised Jensen-Shannon over the whole vocabulary, the divergence that the peers have."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.ops import linear_logprobs
from benchmarks.ops._inputs import nbytes
from benchmarks.registry import Floor, Inputs, Op, Outputs, Run, Shape

SMOLLM2, QWEN3 = linear_logprobs.SMOLLM2, linear_logprobs.QWEN3
BETA = 0.5


def make(shape: Shape, device: torch.device) -> Inputs:
    """A teacher as wide as the student: the peers take no other."""
    inputs = linear_logprobs.make(shape, device)
    generator = torch.Generator().manual_seed(1)
    for name in ("hidden", "weight"):
        tensor = inputs[name]
        scale = 2 / shape.hidden**0.5 if name == "weight" else 1.0
        noise = scale * torch.randn(tensor.shape, generator=generator)
        inputs[f"teacher_{name}"] = (0.8 * tensor.float().cpu() + 0.6 * noise).to(device, shape.dtype)
    inputs["tokens"] = inputs["mask"].sum()
    del inputs["output_grad"]
    return inputs


TENSORS = ("hidden", "weight", "teacher_hidden", "teacher_weight")


def call(ops: Any, inputs: Inputs) -> Outputs:
    tensors = (inputs[name] for name in TENSORS)
    return (ops.linear_kl(*tensors, inputs["mask"], divergence="jsd", beta=BETA).loss,)


def eager(inputs: Inputs) -> Outputs:
    """Both logits, two log-softmaxes, the mixture and two `kl_div`, as trainers write it."""
    student, teacher = both_logits(inputs)
    ours, theirs = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    weights = torch.tensor([1 - BETA, BETA], dtype=ours.dtype, device=ours.device).log()
    mixture = torch.logsumexp(torch.stack([ours + weights[0], theirs + weights[1]]), 0)
    of_teacher = F.kl_div(mixture, theirs, reduction="none", log_target=True)
    of_student = F.kl_div(mixture, ours, reduction="none", log_target=True)
    return ((BETA * of_teacher + (1 - BETA) * of_student).sum() / inputs["tokens"],)


def both_logits(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Of the valid rows, those of the teacher without gradient, at least in fp32 from the softmax on."""
    mask = inputs["mask"]
    student = F.linear(inputs["hidden"][mask], inputs["weight"])
    with torch.no_grad():
        teacher = F.linear(inputs["teacher_hidden"][mask], inputs["teacher_weight"])
    return tuple(logits if logits.dtype == torch.float64 else logits.float() for logits in (student, teacher))


def floor(inputs: Inputs) -> Floor:
    """Four products: both logits, and the two gradients."""
    tokens, (vocab, width) = int(inputs["mask"].sum()), inputs["weight"].shape
    teacher_width = inputs["teacher_weight"].shape[1]
    size = inputs["hidden"].element_size()
    operands = tokens * width * size + nbytes(inputs["weight"])
    teachers = tokens * teacher_width * size + nbytes(inputs["teacher_weight"])
    product = 2.0 * tokens * vocab * width
    return Floor(operands + teachers, 2 * operands, product + 2.0 * tokens * vocab * teacher_width, 2 * product)


def liger(inputs: Inputs) -> Run:
    """Its chunked loss, soft part alone, which averages over the rows it is given."""
    loss = peers.load("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA, temperature=1.0
    )

    def run(i: Inputs) -> Outputs:
        mask = i["mask"]
        labels = i["targets"][mask]
        value = loss(i["hidden"][mask], i["weight"], i["teacher_hidden"][mask], i["teacher_weight"], labels)
        return (value[0] if isinstance(value, tuple) else value,)

    return run


def trl(inputs: Inputs) -> Run:
    """GKD's loss on the logits of both."""
    function = peers.load("trl.experimental.gkd").GKDTrainer.generalized_jsd_loss

    def run(i: Inputs) -> Outputs:
        student, teacher = both_logits(i)
        return (function(student, teacher, beta=BETA, reduction="sum") / i["tokens"],)

    return run


OP = Op(
    name="linear_kl",
    shapes={
        "tiny": (Shape(2, 9, 32, 130),),
        "quick": (Shape(4, 128, 128, 8192),),
        "cpu": (Shape(4, 512, *SMOLLM2), Shape(4, 128, *SMOLLM2, dtype=torch.bfloat16)),
        "gpu": (Shape(16, 2048, *SMOLLM2, dtype=torch.bfloat16), Shape(8, 2048, *QWEN3, dtype=torch.bfloat16)),
    },
    make=make,
    call=call,
    floor=floor,
    gradients=("hidden", "weight"),
    eager=eager,
    peers={"Liger": liger, "TRL": trl},
    checked_tokens=1024,
)
