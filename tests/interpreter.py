"""Triton's interpreter made to do what the compiler does, and in reasonable time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def adapt() -> None:
    """Change the interpreter of this process.

    It cuts an fp32 number off where the compiler rounds it to bf16, `tl.dot` multiplies the bits of bf16 as integers,
    and scans and reductions with a function of one's own call it for each element, where a GPU combines in a tree.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounding_convert(values: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, rounding_mode)
        return torch.from_numpy(np.array(values)).bfloat16().view(torch.uint16).numpy()

    def float_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    def combine(self: Any, first: Sequence[Any], second: Sequence[Any], like: Sequence[Any]) -> list[Any]:
        blocks = [[self.to_tensor(x, t.dtype) for x, t in zip(side, like, strict=True)] for side in (first, second)]
        found = self.combine_fn.fn(*blocks[0], *blocks[1])
        return [x.handle.data for x in (found if isinstance(found, (tuple, list)) else (found,))]

    def scan(self: Any, inputs: Sequence[Any]) -> list[Any]:
        arrays = [np.moveaxis(x.handle.data, self.axis, 0) for x in inputs]
        step = 1
        while step < len(arrays[0]):
            before = [np.concatenate([x[:step], x[:-step]]) for x in arrays]
            combined = combine(self, before, arrays, inputs)
            arrays = [np.concatenate([x[:step], y[step:]]) for x, y in zip(arrays, combined, strict=True)]
            step *= 2
        return [
            self.to_tensor(np.ascontiguousarray(np.moveaxis(x, 0, self.axis)), t.dtype)
            for x, t in zip(arrays, inputs, strict=True)
        ]

    reduce_by_element = interpreter.ReduceOps.generic_reduce

    def reduce(self: Any, inputs: Sequence[Any]) -> list[Any]:
        if self.axis is None or self.keep_dims:
            return reduce_by_element(self, inputs)
        arrays = [np.moveaxis(x.handle.data, self.axis, 0) for x in inputs]
        while len(arrays[0]) > 1:  # a power of two
            arrays = combine(self, [x[::2] for x in arrays], [x[1::2] for x in arrays], inputs)
        return [
            self.to_tensor(x[0] if x[0].shape else x[0].item(), t.dtype) for x, t in zip(arrays, inputs, strict=True)
        ]

    interpreter._convert_float = rounding_convert
    interpreter.InterpreterBuilder.create_dot = float_dot
    interpreter.ScanOps.generic_scan = scan
    interpreter.ReduceOps.generic_reduce = reduce
