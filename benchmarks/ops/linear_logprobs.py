"""`linear_logprobs`: matrix products are the floor. Forward and backward take three, a fourth recomputes logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.ops._inputs import nbytes, rollouts
from benchmarks.registry import Floor, Inputs, Op, Outputs, Run, Shape, Unavailable

SMOLLM2, QWEN3 = (576, 49152), (2048, 151936)


def make(shape: Shape, device: torch.device) -> Inputs:
    """Hidden states as wide as a normalised layer's, so that logits spread as a model's do."""
    generator = torch.Generator().manual_seed(0)
    inputs = rollouts(shape, device, "output_grad")
    layout, width = inputs["output_grad"].shape, shape.hidden
    weight = 2 * torch.randn(shape.vocab, width, generator=generator) / width**0.5
    inputs["output_grad"] = inputs["output_grad"].float()
    inputs["hidden"] = torch.randn(*layout, width, generator=generator).to(device, shape.dtype)
    inputs["weight"] = weight.to(device, shape.dtype)
    inputs["targets"] = torch.randint(shape.vocab, layout, generator=generator).to(device)
    return inputs


def call(ops: Any, inputs: Inputs) -> Outputs:
    return (ops.linear_logprobs(inputs["hidden"], inputs["weight"], inputs["targets"], mask=inputs["mask"]),)


def eager(inputs: Inputs) -> Outputs:
    tensors = (inputs[name] for name in ("hidden", "weight", "targets", "mask"))
    return (from_logits(*tensors, inputs["output_grad"].dtype),)


def from_logits(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits of the valid rows in the model's dtype, then their log-softmax in `dtype`, as trainers write it."""

    def logprobs(hidden: Tensor, targets: Tensor) -> Tensor:
        log_softmax = torch.log_softmax(F.linear(hidden, weight).to(dtype), -1)
        return log_softmax.gather(-1, targets[..., None])[..., 0]

    return peers.compacted(logprobs, hidden, targets, mask)


def floor(inputs: Inputs) -> Floor:
    tokens, (vocab, width) = int(inputs["mask"].sum()), inputs["weight"].shape
    product = 2.0 * tokens * vocab * width
    operands = tokens * width * inputs["hidden"].element_size() + nbytes(inputs["weight"])
    return Floor(operands, 2 * operands, product, 2 * product)


def trl(inputs: Inputs) -> Run:
    function = peers.load("trl.kernels").ChunkedLogProbFunction
    peers.load("trl.trainer.utils")  # which its backward pass imports

    def run(i: Inputs) -> Outputs:
        def logprobs(hidden: Tensor, targets: Tensor) -> Tensor:
            return function.apply(hidden, i["weight"], None, targets, 1.0, 8192, None, 1.0, ())[0]

        return (peers.compacted(logprobs, i["hidden"], i["targets"], i["mask"]),)

    return run


def verl(inputs: Inputs) -> Run:
    """Its chunked form in PyTorch on a CPU, its Triton kernel on a GPU; both compute the entropy as well."""
    if inputs["hidden"].is_cuda:
        kernel = peers.load("verl.utils.kernel.linear_cross_entropy").linear_cross_entropy
    else:
        kernel = peers.load("verl.utils.experimental.torch_functional").FusedLinearForPPO()

    def run(i: Inputs) -> Outputs:
        def logprobs(hidden: Tensor, targets: Tensor) -> Tensor:
            return kernel(hidden, i["weight"], targets, 1.0)[0]

        return (peers.compacted(logprobs, i["hidden"], i["targets"], i["mask"]),)

    return run


def pytorch_fused(inputs: Inputs) -> Run:
    """`F.linear_cross_entropy` of torch 2.13, chunked as its options choose."""
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable(f"torch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()

    def run(i: Inputs) -> Outputs:
        def logprobs(hidden: Tensor, targets: Tensor) -> Tensor:
            return -F.linear_cross_entropy(hidden, i["weight"], targets, reduction="none", options=options).float()

        return (peers.compacted(logprobs, i["hidden"], i["targets"], i["mask"]),)

    return run


def liger(inputs: Inputs) -> Run:
    """Its loss without reduction, which is -logp; on a GPU its Triton kernels, elsewhere its PyTorch form."""
    module = peers.load("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    function = module.LigerFusedLinearScaledCrossEntropyFunction

    def run(i: Inputs) -> Outputs:
        def logprobs(hidden: Tensor, targets: Tensor) -> Tensor:
            return -function.apply(hidden, i["weight"], targets).float()

        return (peers.compacted(logprobs, i["hidden"], i["targets"], i["mask"]),)

    return run


def cut_cross_entropy(inputs: Inputs) -> Run:
    """Without its filter, which leaves out small gradients."""
    function = peers.on_gpu(inputs["hidden"], "cut_cross_entropy").linear_cross_entropy

    def run(i: Inputs) -> Outputs:
        def logprobs(hidden: Tensor, targets: Tensor) -> Tensor:
            return -function(hidden, i["weight"], targets, reduction="none", filter_eps=None).float()

        return (peers.compacted(logprobs, i["hidden"], i["targets"], i["mask"]),)

    return run


OP = Op(
    name="linear_logprobs",
    shapes={
        "tiny": (Shape(2, 9, 32, 130),),
        "quick": (Shape(4, 128, 128, 8192),),
        "cpu": (Shape(4, 512, *SMOLLM2), Shape(4, 128, *SMOLLM2, dtype=torch.bfloat16)),
        "gpu": (
            Shape(16, 2048, *SMOLLM2, dtype=torch.bfloat16),
            Shape(8, 2048, *QWEN3, dtype=torch.bfloat16),
        ),
    },
    make=make,
    call=call,
    floor=floor,
    gradients=("hidden", "weight"),
    eager=eager,
    peers={
        "TRL": trl,
        "verl": verl,
        "Liger": liger,
        "F.linear_cross_entropy": pytorch_fused,
        "cut-cross-entropy": cut_cross_entropy,
    },
    checked_tokens=1024,
)
