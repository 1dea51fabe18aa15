"""`align_edits`: token ids in, labels out. `python -m benchmarks pairs` has more lengths and rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.ops._inputs import nbytes
from benchmarks.registry import Floor, Inputs, Op, Outputs, Run, Shape, Unavailable
from fgrl.alignment import EditAlignment


def make(shape: Shape, device: torch.device) -> Inputs:
    """Pairs in which a share `rate` of the tokens is edited, packed as int32 tensors and as lists."""
    if device.type != "cpu":
        raise Unavailable("align_edits runs on the CPU")
    table = peers.load("benchmarks.align_edits")
    pairs = table.random_pairs(shape.length, shape.rate, shape.batch)
    inputs: Inputs = {"pairs": pairs}
    for side, place in (("original", 0), ("edited", 1)):
        inputs[side], inputs[f"{side}_cu_seqlens"] = table.packed([pair[place] for pair in pairs])
    return inputs


def call(ops: Any, inputs: Inputs) -> Outputs:
    sides = ((inputs[side], inputs[f"{side}_cu_seqlens"]) for side in ("original", "edited"))
    alignment: EditAlignment = ops.align_edits(*sides)
    return alignment.distance, alignment.original_ops, alignment.edited_ops


def floor(inputs: Inputs) -> Floor:
    """Both sides read, a label a token written; the work depends on how far they are apart, and is no floor."""
    tokens = inputs["original"].numel() + inputs["edited"].numel()
    return Floor(nbytes(inputs["original"]) + nbytes(inputs["edited"]) + tokens)


def rapidfuzz(inputs: Inputs) -> Run:
    """One pair at a time, from lists; of equally short scripts it may choose another, so distances are compared."""
    function = peers.load("rapidfuzz.distance").Levenshtein.editops
    return lambda i: (_distances(function(a, b) for a, b in i["pairs"]), None, None)


def python_levenshtein(inputs: Inputs) -> Run:
    function = peers.load("Levenshtein").editops
    return lambda i: (_distances(function(a, b) for a, b in i["pairs"]), None, None)


def _distances(scripts: Any) -> Tensor:
    return torch.tensor([len(script) for script in scripts])


OP = Op(
    name="align_edits",
    shapes={
        "tiny": (Shape(3, 17, dtype=torch.int32, rate=0.1),),
        "quick": (Shape(256, 64, dtype=torch.int32, rate=0.1),),
        "cpu": (Shape(256, 512, dtype=torch.int32, rate=0.05), Shape(16, 8192, dtype=torch.int32, rate=0.02)),
        "gpu": (),
    },
    make=make,
    call=call,
    floor=floor,
    peers={"rapidfuzz": rapidfuzz, "python-Levenshtein": python_levenshtein},
    not_compiled=lambda shape: "works on Python lists",
)
