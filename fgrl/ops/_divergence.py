"""The steps of `linear_kl` between the products: divergence of two rows of logits, and its gradient.

With `log p = z - m - log s` of the student and `log q` of the teacher, see `Statistics` for m and s:

    forward   sum q (log q - log p)                       gradient by z:   p - q
    reverse   sum p (log p - log q)                                        p (log p - log q - reverse)
    jsd       beta sum q (log q - log m) + (1 - beta) J                    (1 - beta) p (log p - log m - J)
              with m = beta q + (1 - beta) p and J = sum p (log p - log m)

Sums over parts of a row add up to those of the whole, whether the parts are on one GPU or on several.
"""

from __future__ import annotations

from typing import get_args

from fgrl.ops import _checks
from fgrl.ops._library import LIBRARY, launch_with_triton
from fgrl.types import Divergence, is_number

# A divergence travels as its position; csrc/ and kernels/ count in the same order.
DIVERGENCES: tuple[str, ...] = get_args(Divergence)

_PAIR = "Tensor student, Tensor teacher, Tensor? bias, Tensor? teacher_bias, Tensor normalizers"
_OPTIONS = "float temperature, float? softcap, float? teacher_softcap, int divergence, float beta"
LIBRARY.define(f"kl_statistics({_PAIR}, {_OPTIONS}) -> Tensor")
LIBRARY.define(f"kl_gradient({_PAIR}, Tensor grads, {_OPTIONS}, Tensor(a!) out) -> ()")
launch_with_triton("kl_statistics", "linear_kl")
launch_with_triton("kl_gradient", "linear_kl")


def check_divergence(divergence: str, beta: float) -> None:
    """`divergence` must be one of `DIVERGENCES`, and `beta` a number between 0 and 1."""
    _checks.check_choice("divergence", divergence, DIVERGENCES)
    if not is_number(beta) or not 0 < beta < 1:
        raise ValueError(f"beta is {beta!r}; it must be a number greater than 0 and less than 1")
