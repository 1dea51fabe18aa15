"""OpenRLHF 0.11.2 with fgrl's ops: `fgrl.integrations.openrlhf.patch()`, or its launcher for training on Ray.

    python -m fgrl.integrations.openrlhf --actor.model_name_or_path ...  # as python -m openrlhf.cli.train_ppo_ray

| of OpenRLHF | becomes |
|---|---|
| `PolicyLoss` ("ppo" and "gspo"), `ValueLoss` | `fgrl.ops.ppo_loss`, `fgrl.ops.value_loss` |
| `RemoteExperienceMaker.get_advantages_and_returns` | `fgrl.ops.gae`, which skips the holes of the action mask |
| `compute_reward` | the same, and one reward a token where an agent or a reward function gives them |

Token rewards are `"token_rewards"` in the `extra_logs` of an agent's or a reward function's result: one number an
action token, in their order. They add to the reward of the response, which may be 0. Metrics, whitening, and
the losses with `is_correction_level`, stay OpenRLHF's.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import runpy
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fgrl import ops
from fgrl.integrations._host import Patch, Replacement, require_parameters, require_version

SUPPORTED = "==0.11.2"
_LOSSES, _MAKER = "openrlhf.models.loss", "openrlhf.trainer.ppo_utils.experience_maker"
_POLICY_LOSSES: dict[str, Any] = {"ppo": "clip", "gspo": "gspo"}
_BATCH = ("dp_size", "batch_num_tokens", "global_batch_size")


def patch() -> Patch:
    """Replace OpenRLHF's functions in this process, and return what `undo()` puts them back with.

    Raises:
        ImportError: OpenRLHF is not installed, in another version, or cannot be imported here.
    """
    require_version("openrlhf", SUPPORTED)
    replacements = [*_loss_replacements(), *_maker_replacements()]
    return Patch("fgrl.integrations.openrlhf", replacements).apply()


def patch_on_import() -> None:
    """Replace each of OpenRLHF's functions when its module is imported: the `worker_process_setup_hook` of Ray."""
    require_version("openrlhf", SUPPORTED)
    sys.meta_path.insert(0, _PatchingFinder())


def main(arguments: Sequence[str] | None = None) -> None:
    """`openrlhf.cli.train_ppo_ray` with these arguments, on a Ray whose workers patch OpenRLHF when they import it.

    Where the run is submitted to a cluster (`ray job submit`), its runtime environment takes the hook instead:
    `--runtime-env-json='{"worker_process_setup_hook": "fgrl.integrations.openrlhf.patch_on_import"}'`.
    """
    import ray

    require_version("openrlhf", SUPPORTED)
    ray.init(runtime_env={"worker_process_setup_hook": "fgrl.integrations.openrlhf.patch_on_import"})
    sys.argv[1:] = sys.argv[1:] if arguments is None else arguments
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


def _loss_replacements() -> list[Replacement]:
    """Methods of the classes, which are the same wherever their names were imported to."""
    losses = importlib.import_module(_LOSSES)
    rollout = ("self", "log_probs", "old_log_probs", "advantages", "action_mask", "rollout_log_probs")
    require_parameters(losses.PolicyLoss.forward, (*rollout, *_BATCH))
    require_parameters(losses.ValueLoss.forward, ("self", "values", "old_values", "returns", "action_mask", *_BATCH))
    return [
        Replacement(losses.PolicyLoss, "forward", _policy_loss(losses.PolicyLoss.forward)),
        Replacement(losses.ValueLoss, "forward", value_loss),
    ]


def _maker_replacements() -> list[Replacement]:
    module = importlib.import_module(_MAKER)
    utils, maker = importlib.import_module("openrlhf.models.utils"), module.RemoteExperienceMaker
    require_parameters(module.compute_reward, ("r", "kl_coef", "kl", "action_mask", "reward_clip_range"))
    require_parameters(maker.get_advantages_and_returns, ("self", "values", "rewards", "action_mask", "gamma", "lambd"))
    require_parameters(maker.compute_advantages_and_returns, ("self", "experiences"))
    reward = _compute_reward(module.compute_reward)
    return [
        Replacement(maker, "get_advantages_and_returns", gae),
        Replacement(maker, "compute_advantages_and_returns", _with_token_rewards(maker.compute_advantages_and_returns)),
        Replacement(utils, "compute_reward", reward),
        Replacement(module, "compute_reward", reward),  # imported there by name
    ]


def _policy_loss(theirs: Any) -> Any:
    def forward(
        self: Any,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        action_mask: Tensor | None = None,
        rollout_log_probs: Tensor | None = None,
        dp_size: int = 1,
        batch_num_tokens: float | None = None,
        global_batch_size: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """`PolicyLoss.forward` on `[B, T]`: loss, clip ratio, KL and the two metrics of the correction, here None."""
        batch = (dp_size, batch_num_tokens, global_batch_size)
        if self.is_correction_level != "off" or self.policy_loss_type not in _POLICY_LOSSES:
            return theirs(self, log_probs, old_log_probs, advantages, action_mask, rollout_log_probs, *batch)
        aggregation, normalizer, factor = _aggregate(self.token_level_loss, *batch)
        options = ops.PPOLossConfig(
            clip_low=self.clip_eps_low,
            clip_high=self.clip_eps_high,
            dual_clip=self.dual_clip,
            loss=_POLICY_LOSSES[self.policy_loss_type],
            aggregation=aggregation,
        )
        loss, stats = ops.ppo_loss(
            log_probs, old_log_probs, advantages, action_mask, normalizer=normalizer, config=options
        )
        # The op clamps the log-ratio of this metric, OpenRLHF does not.
        difference = (old_log_probs - log_probs).detach()
        kl = difference.mean() if action_mask is None else difference[action_mask.bool()].mean()
        return loss * factor, stats["clip_fraction"], kl, None, None

    return forward


def value_loss(
    self: Any,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    action_mask: Tensor | None = None,
    dp_size: int = 1,
    batch_num_tokens: float | None = None,
    global_batch_size: float | None = None,
) -> Tensor:
    """`ValueLoss.forward` on `[B, T]`."""
    aggregation, normalizer, factor = _aggregate(self.token_level_loss, dp_size, batch_num_tokens, global_batch_size)
    loss, _ = ops.value_loss(
        values,
        old_values,
        returns,
        action_mask,
        clip=self.clip_eps,
        normalizer=normalizer,
        aggregation=aggregation,
    )
    return loss * factor


@torch.no_grad()
def gae(
    self: Any, values: Tensor, rewards: Tensor, action_mask: Tensor | None, gamma: float, lambd: float
) -> tuple[Tensor, Tensor]:
    """`RemoteExperienceMaker.get_advantages_and_returns` on `[B, T]`; 0 where the mask is."""
    return ops.gae(rewards, values, action_mask, gamma=float(gamma), lam=float(lambd))


def _compute_reward(theirs: Any) -> Any:
    def compute_reward(
        r: Tensor,
        kl_coef: float,
        kl: Tensor,
        action_mask: Tensor | None = None,
        reward_clip_range: tuple[float, float] | None = None,
    ) -> Tensor:
        """`compute_reward`; `r` may be `[B, T]`, one reward a token, and `kl` may carry token rewards beside `r`."""
        tokens = r if r.ndim == 2 else getattr(kl, "token_rewards", None)
        outcome = r if r.ndim == 1 else r.new_zeros(len(r))
        shaped = theirs(outcome, kl_coef, kl, action_mask, reward_clip_range)
        if tokens is None:
            return shaped
        if reward_clip_range:
            tokens = tokens.clamp(*reward_clip_range)
        return shaped + (tokens if action_mask is None else torch.where(action_mask.bool(), tokens, 0.0))

    return compute_reward


def _with_token_rewards(theirs: Any) -> Any:
    def compute_advantages_and_returns(self: Any, experiences: list[Any]) -> list[Any]:
        """`RemoteExperienceMaker.compute_advantages_and_returns` with the token rewards of `extra_logs`."""
        for experience in experiences:
            tokens = experience.info.pop("token_rewards", None)
            if tokens is not None:
                # Its loop gives each experience's own `kl` to `compute_reward`, and nothing else of it.
                experience.kl.token_rewards = _at_actions(tokens, experience.action_mask)
        return theirs(self, experiences)

    return compute_advantages_and_returns


def _at_actions(tokens: Tensor, mask: Tensor) -> Tensor:
    """Token rewards `[B, L]`, one an action in their order, at the places `[B, T]` of the actions."""
    valid = mask.bool()
    actions = int(valid.sum(1).max())
    if tokens.ndim != 2 or tokens.shape[1] < actions:
        raise ValueError(
            f"token_rewards has shape {list(tokens.shape)}; it must have one number for each of the {actions} actions"
        )
    places = (valid.cumsum(1) - 1).clamp(min=0)
    return torch.where(valid, tokens.to(mask.device, torch.float32).gather(1, places), 0.0)


def _aggregate(
    token_level: bool, dp_size: int, batch_num_tokens: float | None, global_batch_size: float | None
) -> tuple[Any, float | None, float]:
    """Aggregation and normalizer of fgrl, and the factor with which they give OpenRLHF's `aggregate_loss`."""
    normalizer = batch_num_tokens if token_level else global_batch_size
    return (
        "token-mean" if token_level else "seq-mean-token-mean",
        normalizer,
        1.0 if normalizer is None else float(dp_size),
    )


class _PatchingFinder(importlib.abc.MetaPathFinder):
    """Applies the replacements of a module of OpenRLHF right after its import."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        replacements = {_LOSSES: _loss_replacements, _MAKER: _maker_replacements}.get(name)
        if replacements is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            Patch(f"fgrl.integrations.openrlhf of {name}", replacements()).apply()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if __name__ == "__main__":
    main()
