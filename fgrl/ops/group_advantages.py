"""Public op: advantages within groups of responses to one prompt (GRPO, RLOO and their relatives)."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from fgrl import backend
from fgrl.ops import _checks
from fgrl.ops._library import LIBRARY, differentiate_through, launch_with_triton
from fgrl.types import GroupBaseline, GroupScale, compute_dtype, is_number

LIBRARY.define(
    "group_advantages(Tensor? rewards, Tensor groups, Tensor? mask, Tensor? token_rewards, Tensor? segment_ids, "
    "Tensor? cu_seqlens, int baseline, int scale, float gamma, float? min_temperature) -> Tensor"
)
launch_with_triton("group_advantages", "group_advantages")

# The names by their position, which is what the operator takes and csrc/ counts by.
_BASELINES: tuple[GroupBaseline, ...] = get_args(GroupBaseline)
_SCALES: tuple[GroupScale, ...] = get_args(GroupScale)


def group_advantages(
    rewards: Tensor | None,
    groups: Tensor,
    mask: Tensor | None = None,
    *,
    token_rewards: Tensor | None = None,
    baseline: GroupBaseline = "mean",
    scale: GroupScale = "group",
    gamma: float = 1.0,
    segment_ids: Tensor | None = None,
    min_temperature: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Token-level advantages from rewards compared within groups, without a critic.

    An outcome advantage `(r - baseline) / scale` stands at every valid token of its sequence. Token rewards are
    compared in the same way, over the valid tokens of the group, and summed from each token on:
    `G_t = r'_t + gamma * G_t'`, where `t'` is the next *valid* token. With both, the two parts add up.

    | method | arguments |
    |---|---|
    | GRPO (arXiv 2402.03300, eq. 3 and section 4.1.3) | the defaults; with `segment_ids` its process supervision |
    | Dr. GRPO (arXiv 2503.20783) | `scale="none"` |
    | RLOO (arXiv 2402.14740) | `baseline="leave-one-out", scale="none"` |
    | REINFORCE++ with baseline (arXiv 2501.03262) | `scale="none"`, then `whiten` |
    | REINFORCE++ | `token_rewards`, `baseline="none", scale="none"`, then `whiten` |
    | PURE (arXiv 2504.15275) | RLOO's with `token_rewards`, `segment_ids` and `min_temperature` |

    A sequence without a valid token belongs to no group: its reward is not seen, so that a filler row changes nothing.
    A NaN reward of a valid token or sequence is not hidden: it makes its group NaN.

    Args:
        rewards: `[B]`, one outcome a sequence; any floating dtype. None: token rewards alone.
        groups: `[B]`, an integer a sequence, equal where the prompt is; any values, any order, groups of any size.
        mask: `[B, T]`, or packed `[N]` with `cu_seqlens`; bool or 0/1: the tokens the policy produced; may have holes.
            Default: all tokens of `token_rewards`, which must then be given.
        token_rewards: same shape, one reward a token, any floating dtype.
        baseline: "mean" of the group; "leave-one-out", the mean over the *other* sequences of the group (with token
            rewards: over their tokens); or "none". A sequence alone in its group has no others and takes its own
            mean, so that its outcome advantage is 0 under both.
        scale: the standard deviation, with Bessel's correction, plus 1e-6, of what the baseline is the mean of: within
            the "group", over the whole "batch", or "none". One outcome, token or segment alone has scale 1.
        gamma: discount of later token rewards, in [0, 1]; with `segment_ids` from segment to segment.
        segment_ids: shape of `token_rewards`, integers. Valid tokens next to each other (over holes) with one id are a
            segment, which counts as one item with one score: that of its last valid token, so a score may be given
            there alone or at all of the segment's tokens. All its tokens get the same advantage: with `gamma=1` the
            sum of the scores from their segment on, with `gamma=0` their own segment's.
        min_temperature: PURE's min-form: before they are compared, scores (of segments or tokens) are weighted by
            `softmax(-score / min_temperature)` over their sequence; at 0 the least stays, the first of equals, and the
            others become 0. PURE's authors train with 0.1. Default: scores as they are.
        cu_seqlens: `[B + 1]` int32 or int64 offsets of packed sequences, from 0 to N.

    Returns:
        Advantages in the shape of `mask` and `token_rewards`, fp32 (fp64 when a reward is fp64), exactly 0 where the
        mask is false. Statistics are taken in fp64, over this call's batch: gather rewards first where a group is
        spread over processes.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, in one sentence that names the argument.

    Example:
        >>> import torch, fgrl
        >>> rewards, groups = torch.tensor([1.0, 0.0, 5.0, 3.0]), torch.tensor([7, 7, 2, 2])
        >>> mask = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1]])
        >>> fgrl.ops.group_advantages(rewards, groups, mask, scale="none")
        tensor([[ 0.5000,  0.5000],
                [-0.5000,  0.0000],
                [ 0.0000,  1.0000],
                [-1.0000, -1.0000]])
    """
    if rewards is None and token_rewards is None:
        raise ValueError("rewards is None and token_rewards is None; one of them must be given")
    if token_rewards is not None:
        name, like = "token_rewards", token_rewards
        _checks.check_float(name, like)
    elif mask is not None:
        name, like = "mask", mask
        if not isinstance(like, Tensor):
            raise ValueError(f"mask is a {type(like).__name__}; it must be a tensor [B, T], or packed [N]")
    else:
        raise ValueError("mask is None and token_rewards is None; one of them must be given for the result's shape")
    batch = _checks.check_sequences(name, like, cu_seqlens)
    _checks.check_mask("mask", mask, name, like)
    _checks.check_per_sequence("rewards", rewards, batch, name, like)
    _checks.check_integers("groups", groups)
    if groups.shape != (batch,):
        raise ValueError(f"groups has shape {list(groups.shape)}; it must be [{batch}], one entry a sequence")
    _checks.check_device("groups", groups, name, like)
    _checks.check_choice("baseline", baseline, _BASELINES)
    _checks.check_choice("scale", scale, _SCALES)
    _checks.check_unit_interval("gamma", gamma)
    if segment_ids is not None:
        if token_rewards is None:
            raise ValueError("token_rewards is None and segment_ids is given; segments must have token_rewards")
        _checks.check_integers("segment_ids", segment_ids)
        _checks.check_shape("segment_ids", segment_ids, like.shape, name)
        _checks.check_device("segment_ids", segment_ids, name, like)
    if min_temperature is not None:
        if token_rewards is None:
            raise ValueError("token_rewards is None and min_temperature is given; it must have token_rewards")
        if not (is_number(min_temperature) and 0 <= min_temperature < math.inf):
            raise ValueError(f"min_temperature is {min_temperature!r}; it must be a finite number of at least 0")
        min_temperature = float(min_temperature)
    arguments = (
        rewards,
        groups,
        mask,
        token_rewards,
        segment_ids,
        cu_seqlens,
        _BASELINES.index(baseline),
        _SCALES.index(scale),
        float(gamma),
        min_temperature,
    )
    if backend.resolve("group_advantages", like.device) == "reference":
        return _plain_group_advantages(*arguments)[0]
    return torch.ops.fgrl.group_advantages(*arguments)


@torch.library.register_fake("fgrl::group_advantages", lib=LIBRARY)
def _group_advantages_fake(
    rewards: Tensor | None, groups: Tensor, mask: Tensor | None, token_rewards: Tensor | None, *_: object
) -> Tensor:
    like = mask if token_rewards is None else token_rewards
    assert like is not None
    return like.new_empty(like.shape, dtype=compute_dtype(rewards, token_rewards))


def _plain_group_advantages(
    rewards: Tensor | None,
    groups: Tensor,
    mask: Tensor | None,
    token_rewards: Tensor | None,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    baseline: int,
    scale: int,
    gamma: float,
    min_temperature: float | None,
) -> tuple[Tensor]:
    """The reference, called as the operator is."""
    run = backend.reference("group_advantages", groups.device)
    advantages = run(
        rewards,
        groups,
        mask,
        token_rewards=token_rewards,
        baseline=_BASELINES[baseline],
        scale=_SCALES[scale],
        gamma=gamma,
        segment_ids=segment_ids,
        min_temperature=min_temperature,
        cu_seqlens=cu_seqlens,
    )
    return (advantages,)


differentiate_through("group_advantages", _plain_group_advantages)
