"""verl 0.9.1 with fgrl's ops. Importing this module is what makes the replacements.

verl imports the module that its configuration names as `external_lib`, in the driver, in the workers of the actor and
the critic and in those of the agent loop:

    actor_rollout_ref.model.external_lib=fgrl.integrations.verl critic.model.external_lib=fgrl.integrations.verl

| of verl | becomes |
|---|---|
| `algorithm.adv_estimator=gae` | `fgrl.ops.gae`, then `fgrl.ops.whiten` |
| value loss | `fgrl.ops.value_loss` |
| `use_fused_kernels=True` with `impl_backend: torch` | `fgrl.ops.linear_logprobs` with entropy; a sharded head works |

New names to choose in the configuration:

| name | what it is |
|---|---|
| `actor_rollout_ref.actor.policy_loss.loss_mode=fgrl` | `fgrl.ops.ppo_loss` in the place of "vanilla" |
| `algorithm.adv_estimator=fgrl` | `fgrl.ops.group_advantages` of outcomes and token rewards |
| `algorithm.adv_estimator=fgrl_tokens` | the same of token rewards alone |

Token rewards come from a reward manager: see `fgrl.integrations.verl.rewards`. Metrics stay under verl's names.
`undo()` puts everything back in this process.
"""

from __future__ import annotations

from fgrl.integrations._host import Patch, Replacement, require_parameters, require_version

SUPPORTED = "==0.9.1"
require_version("verl", SUPPORTED)

import verl.utils.experimental.torch_functional as fused_heads  # noqa: E402
import verl.workers.utils.losses as worker_losses  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402

from fgrl.integrations.verl.algorithms import (  # noqa: E402
    gae,
    outcome_and_token_advantages,
    policy_loss,
    token_advantages,
    value_loss,
)
from fgrl.integrations.verl.linear import FusedLinear  # noqa: E402

__all__ = ["apply", "undo"]

_LOSS_PARAMETERS = ("loss_agg_mode", "dp_size", "batch_num_tokens", "global_batch_size", "loss_scale_factor")
_VALUE_PARAMETERS = ("vpreds", "returns", "values", "response_mask", "cliprange_value", *_LOSS_PARAMETERS)
_GAE_PARAMETERS = ("token_level_rewards", "values", "response_mask", "gamma", "lam")
_HEAD_PARAMETERS = ("self", "hidden_states", "vocab_weights", "input_ids", "temperature")

patches = [
    Patch(
        "fgrl.integrations.verl",
        [
            Replacement(core_algos, "compute_gae_advantage_return", gae),
            Replacement(core_algos.ADV_ESTIMATOR_REGISTRY, "gae", gae),
            Replacement(core_algos.ADV_ESTIMATOR_REGISTRY, "fgrl", outcome_and_token_advantages),
            Replacement(core_algos.ADV_ESTIMATOR_REGISTRY, "fgrl_tokens", token_advantages),
            Replacement(core_algos.POLICY_LOSS_REGISTRY, "fgrl", policy_loss),
            # There is no registry of value losses, and the workers imported theirs by name.
            Replacement(core_algos, "compute_value_loss", value_loss),
            Replacement(worker_losses, "compute_value_loss", value_loss),
            Replacement(fused_heads, "FusedLinearForPPO", FusedLinear),
        ],
    )
]
"""Those of this process; `fgrl.integrations.verl.rewards` adds its own."""


def apply() -> None:
    """Make the replacements again after `undo`; importing the module has made them already."""
    for patch in patches:
        if not patch.applied:
            patch.apply()


def undo() -> None:
    """Put verl's own functions back, and take the new names out of its registries, in this process."""
    for patch in patches:
        patch.undo()


require_parameters(core_algos.compute_gae_advantage_return, _GAE_PARAMETERS)
require_parameters(core_algos.compute_value_loss, _VALUE_PARAMETERS)
require_parameters(fused_heads.FusedLinearForPPO.forward, _HEAD_PARAMETERS)
apply()
