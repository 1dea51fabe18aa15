"""The `fgrl` operator library: where the fused ops are declared to PyTorch.

Schemas, fakes and autograd formulas are defined at import by the files of this folder and need torch only. The C++
extension registers the CPU implementations when it is loaded; `launch_with_triton` registers the GPU ones, which are
imported with Triton on the first call. So `torch.compile` sees every op whole, and nothing is compiled at import.

A KL estimator travels as its position in `KL_ESTIMATORS`, a number as the other scalars are; csrc/ counts in the same
order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgrl.extension import interprets_kernels
from fgrl.types import KLEstimator

LIBRARY = torch.library.Library("fgrl", "FRAGMENT")

KL_ESTIMATORS: tuple[str, ...] = get_args(KLEstimator)


def launch_with_triton(op: str, module: str) -> None:
    """Make `fgrl.kernels.<module>.<op>` the implementation of `fgrl::<op>` on GPU tensors.

    In a process that interprets Triton kernels it serves CPU tensors too, in index of C++.
    """

    def launch(*args: Any) -> Any:
        return getattr(import_module(f"fgrl.kernels.{module}"), op)(*args)

    for key in ("CUDA", "XPU", *(["CPU"] if interprets_kernels() else [])):
        LIBRARY.impl(op, launch, key)


def differentiate_through(op: str, plain: Callable[..., tuple[Tensor, ...]]) -> None:
    """Give `fgrl::<op>` the derivative of `plain`, the same computation in PyTorch with the same arguments.

    For ops whose outputs a loss takes as constants: the forward pass is fused all the same, and a caller who does
    differentiate through them gets the right gradient at the speed of PyTorch.
    """
    schema = getattr(torch.ops.fgrl, op).default._schema
    count = len(schema.arguments)
    arguments = str(schema).partition("(")[2].partition(") -> ")[0]
    output_grads = ", ".join(f"Tensor? grad_{index}" for index in range(len(schema.returns)))
    LIBRARY.define(f"{op}_backward({arguments}, {output_grads}) -> Tensor[]")

    def backward(*args: Any) -> list[Tensor]:
        inputs, grads = list(args[:count]), args[count:]
        indices = _differentiable(inputs)
        with torch.enable_grad():
            for index in indices:
                inputs[index] = inputs[index].detach().requires_grad_()
            outputs = plain(*inputs)
            used = [index for index, grad in enumerate(grads) if grad is not None and outputs[index].requires_grad]
            return list(
                torch.autograd.grad(
                    [outputs[index] for index in used],
                    [inputs[index] for index in indices],
                    [grads[index] for index in used],
                    materialize_grads=True,
                )
            )

    LIBRARY.impl(f"{op}_backward", backward, "CompositeExplicitAutograd")

    @torch.library.register_fake(f"fgrl::{op}_backward", lib=LIBRARY)
    def fake(*args: Any) -> list[Tensor]:
        return [torch.empty_like(args[index]) for index in _differentiable(args[:count])]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.indices = [index for index, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.rest = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(inputs[index] for index in ctx.indices))

    @once_differentiable
    def formula(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = list(ctx.rest)
        for index, tensor in zip(ctx.indices, ctx.saved_tensors, strict=True):
            inputs[index] = tensor
        found = getattr(torch.ops.fgrl, f"{op}_backward")(*inputs, *grads)
        result: list[Tensor | None] = [None] * len(inputs)
        for index, grad in zip(_differentiable(inputs), found, strict=True):
            result[index] = grad
        return tuple(result)

    torch.library.register_autograd(f"fgrl::{op}", formula, setup_context=setup_context, lib=LIBRARY)


def differentiate_with_outputs(op: str, *names: str) -> None:
    """Give `fgrl::<op>`, a loss, the gradients it computed along with it: its backward pass is one multiplication each.

    Of its outputs the first, `loss`, is 0-d and the only one with a gradient, and `scale`, 0-d, is what all gradients
    have yet to be multiplied by: denominators that are not known before the last token has been read. For each of
    `names`, an input, there is an output `<name>_grad`, empty unless the argument `grad_<name>` is true.

    Gradients are kept in the dtype of the computation and rounded to that of the input once, after the multiplication:
    before it they are larger by a number of tokens, which fp16 has no room for.
    """
    operator = getattr(torch.ops.fgrl, op).default
    inputs_at = {argument.name: index for index, argument in enumerate(operator._schema.arguments)}
    outputs_at = {output.name: index for index, output in enumerate(operator._schema.returns)}
    indices = [(inputs_at[name], inputs_at[f"grad_{name}"], outputs_at[f"{name}_grad"]) for name in names]

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *inputs: Any) -> tuple[Tensor, ...]:
            output = below_autograd(keyset, *inputs)
            needed = ctx.needs_input_grad[1:]
            wanted = [(index, found) for index, flag, found in indices if inputs[flag] and needed[index]]
            ctx.mark_non_differentiable(*output[1:] if wanted else output)
            ctx.set_materialize_grads(False)
            ctx.inputs = len(inputs)
            ctx.dtypes = {index: inputs[index].dtype for index, _ in wanted}
            ctx.save_for_backward(output[outputs_at["scale"]], *(output[found] for _, found in wanted))
            return output

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
            result: list[Tensor | None] = [None] * ctx.inputs
            if grad is not None:
                scale, *gradients = ctx.saved_tensors
                factor = grad * scale
                for (index, dtype), gradient in zip(ctx.dtypes.items(), gradients, strict=True):
                    result[index] = (gradient * factor).to(dtype)
            return (None, *result)

    def below_autograd(keyset: Any, *inputs: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

    def autograd(keyset: Any, *inputs: Any) -> tuple[Tensor, ...]:
        differentiates = torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)
        return (Loss.apply if differentiates else below_autograd)(keyset, *inputs)

    # As `torch.library.register_autograd` does it, less 75 us a call, in which it looks for arguments left out.
    LIBRARY.impl(op, autograd, "Autograd", with_keyset=True)


def _differentiable(inputs: Sequence[Any]) -> list[int]:
    return [index for index, value in enumerate(inputs) if isinstance(value, Tensor) and value.is_floating_point()]
