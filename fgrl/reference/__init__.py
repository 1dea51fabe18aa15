"""The ops in plain PyTorch: the specification of the library, the oracle of its tests, and the fallback.

Names and signatures are those of `fgrl.ops`. The functions here trust their input; `fgrl.ops` validates it. All
are differentiable by autograd. They compute in fp32 (in fp64 when a floating-point input is fp64), whatever the
input's dtype, and select by mask before they compute, so that what stands at a masked position never matters.
"""

from fgrl.reference.align_edits import align_edits
from fgrl.reference.edit_preference_loss import edit_preference_loss
from fgrl.reference.gae import gae
from fgrl.reference.group_advantages import group_advantages
from fgrl.reference.linear_kl import linear_kl
from fgrl.reference.linear_logprobs import linear_logprobs
from fgrl.reference.linear_ppo_loss import linear_ppo_loss
from fgrl.reference.linear_topk_kl import linear_topk_kl
from fgrl.reference.ppo_loss import ppo_loss
from fgrl.reference.token_advantages import advantage_moments, token_advantages
from fgrl.reference.token_reward_head import token_reward_head
from fgrl.reference.value_loss import value_loss
from fgrl.reference.whiten import whiten

__all__ = [
    "advantage_moments",
    "align_edits",
    "edit_preference_loss",
    "gae",
    "group_advantages",
    "linear_kl",
    "linear_logprobs",
    "linear_ppo_loss",
    "linear_topk_kl",
    "ppo_loss",
    "token_advantages",
    "token_reward_head",
    "value_loss",
    "whiten",
]
