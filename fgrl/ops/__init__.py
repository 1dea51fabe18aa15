"""The public ops: each validates its input once, then runs on the fastest backend there is (see `fgrl.use_backend`)."""

from fgrl.ops.align_edits import align_edits
from fgrl.ops.edit_preference_loss import edit_preference_loss
from fgrl.ops.gae import gae
from fgrl.ops.group_advantages import group_advantages
from fgrl.ops.linear_kl import linear_kl
from fgrl.ops.linear_logprobs import linear_logprobs
from fgrl.ops.linear_ppo_loss import linear_ppo_loss
from fgrl.ops.linear_topk_kl import linear_topk_kl
from fgrl.ops.ppo_loss import ppo_loss
from fgrl.ops.token_advantages import token_advantages
from fgrl.ops.token_reward_head import token_reward_head
from fgrl.ops.value_loss import value_loss
from fgrl.ops.whiten import whiten
from fgrl.types import (
    GAE,
    EditPreferenceLoss,
    LinearKL,
    LinearPPOLoss,
    PPOLoss,
    PPOLossConfig,
    TokenAdvantages,
    ValueLoss,
)

__all__ = [
    "GAE",
    "EditPreferenceLoss",
    "LinearKL",
    "LinearPPOLoss",
    "PPOLoss",
    "PPOLossConfig",
    "TokenAdvantages",
    "ValueLoss",
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
