"""The KL estimators of `fgrl.reference.ppo_loss.kl_value` inside a kernel."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def kl_value(difference, KIND: tl.constexpr):
    """The estimate of KL(policy || ref) from d = logp - ref, by the position of its name in `KL_ESTIMATORS`.

    k1 = d,  k2 = d^2 / 2,  k3 = exp(-d) + d - 1,  abs = |d|;   a "+" (4 more) does not change the value
    """
    if KIND % 4 == 0:
        return difference
    elif KIND % 4 == 1:
        return difference * difference * 0.5
    elif KIND % 4 == 2:
        return _exp_minus_tangent(-difference)
    else:
        return tl.abs(difference)


@triton.jit
def _exp_minus_tangent(x):
    """exp(x) - 1 - x; where that cancels, its series x^2 / 2! + x^3 / 3! + ... + x^n / n!, times n! until the end."""
    LAST: tl.constexpr = 18 if x.dtype == tl.float64 else 10  # what is left out is below rounding for |x| < 1
    factor = tl.full([], 1.0, x.dtype)  # n! / k! for the term x^k
    series = tl.full(x.shape, 1.0, x.dtype)
    for term in tl.static_range(LAST, 2, -1):
        factor *= term
        series = series * x + factor
    return tl.where(tl.abs(x) < 1, x * x * series * (0.5 / factor), tl.exp(x) - 1.0 - x)
