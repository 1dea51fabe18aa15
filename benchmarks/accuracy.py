"""The correctness that comes before speed: the rule of the tests for ours, and a common tolerance for peers.

Ours: `|ours - exact| <= 2 |PyTorch - exact| + eps`, in max norm and in relative RMS, for every output and gradient,
where `exact` is `fgrl.reference` in float64 and PyTorch runs in the dtype of the inputs. Peers need only compute the
same thing, as `PEER_TOLERANCE` has it; what they write at masked positions is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.registry import Inputs, Op, Run, widen, with_leaves
from fgrl import reference

EPS = 1e-6
PEER_TOLERANCE, HALF_PRECISION_TOLERANCE = 1e-3, 0.1

Results = dict[str, Tensor | None]


class Verdict(NamedTuple):
    """The largest relative RMS error over outputs and gradients, and what is wrong, in words, or ""."""

    error: float
    complaint: str


def results(op: Op, run: Run, inputs: Inputs) -> Results:
    """Outputs and gradients of one run, by name."""
    leaves = with_leaves(inputs, op.gradients)
    outputs = run(leaves)
    found: Results = {
        f"output {place}": None if output is None else output.detach() for place, output in enumerate(outputs)
    }
    if op.gradients:
        first = outputs[0]
        assert first is not None, "the output with the gradient is missing"
        first.backward(leaves.get("output_grad"))
        found |= {f"gradient of {name}": leaves[name].grad for name in op.gradients}
    return found


def exact(op: Op, inputs: Inputs) -> Results:
    """The answer: the reference in float64."""
    return results(op, lambda i: op.call(reference, i), widen(inputs))


def judge_ours(ours: Results, pytorch: Results, answer: Mapping[str, Tensor | None]) -> Verdict:
    """By the rule of the tests."""
    worst, complaint = 0.0, ""
    for name, right in answer.items():
        found, baseline = ours[name], pytorch[name]
        assert found is not None, name
        assert right is not None, name
        error, rms = _errors(found, right)
        allowed, rms_allowed = (0.0, 0.0) if baseline is None else _errors(baseline, right)
        worst = max(worst, rms)
        ulp = 2**-23 * float(right.abs().max()) if right.numel() else 0.0  # in fp32; PyTorch may be exact by luck
        if not (error <= 2 * allowed + max(EPS, ulp) and rms <= 2 * rms_allowed + EPS) and not complaint:
            complaint = f"{name} is off by {error:.2e} ({rms:.1e} of its size); PyTorch by {allowed:.2e}"
    return Verdict(worst, complaint)


def judge_peer(theirs: Results, answer: Mapping[str, Tensor | None], inputs: Inputs, dtype: torch.dtype) -> Verdict:
    """Whether a peer computes the same, where it has such an output."""
    mask, worst, complaint = inputs.get("mask"), 0.0, ""
    tolerance = HALF_PRECISION_TOLERANCE if dtype in (torch.bfloat16, torch.float16) else PEER_TOLERANCE
    for name, right in answer.items():
        found = theirs.get(name)
        if found is None:
            continue
        assert right is not None, name
        if mask is not None and found.shape == mask.shape == right.shape:
            found, right = found[mask], right[mask]
        _, rms = _errors(found, right)
        worst = max(worst, rms)
        if not rms <= tolerance and not complaint:
            complaint = f"{name} differs by {100 * rms:.2g} % of its size"
    return Verdict(worst, complaint)


def _errors(found: Tensor, right: Tensor) -> tuple[float, float]:
    """Largest error, and root mean square error relative to the root mean square."""
    if right.numel() == 0:
        return 0.0, 0.0
    error = found.double() - right.double()
    # A single number is a sum: half an ulp of a term of around 1 is nobody's error, whatever is left of the sum.
    scale = right.double().square().mean().sqrt().clamp(min=2**-24 / EPS if right.numel() == 1 else 1e-30)
    return float(error.abs().max()), float(error.square().mean().sqrt() / scale)
