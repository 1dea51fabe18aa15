"""Per-token log-probabilities and entropies of TRL's trainers through `fgrl.ops.linear_logprobs`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from torch import Tensor
from torch.distributed.tensor import DTensor
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_logprob import _use_triton

from fgrl.integrations._host import Patch, Replacement, require_parameters
from fgrl.ops import linear_logprobs

_PARAMETERS = (
    "ctx",
    "hidden",
    "weight",
    "bias",
    "targets",
    "temperature",
    "chunk_size",
    "final_logit_softcapping",
    "logit_scale",
    "outputs",
)
_OUTPUTS = {"log_probs", "entropy"}


class LinearLogprobs:
    """Stands where TRL's trainers look for `ChunkedLogProbFunction`."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"),
    ) -> tuple[Tensor | None, ...]:
        """As TRL's: `hidden [N, D]`, `weight [V, D]`, `bias [V]`, `targets [N]`; five results, None where not wanted.

        What `linear_logprobs` does not give (metrics that need the logits, such as `is_top1`) and heads that are not
        whole on this process (ZeRO-3, DTensor) are left to TRL's own function.
        """
        heads = (weight,) if bias is None else (weight, bias)
        whole = all(head.is_floating_point() and not isinstance(head, DTensor) for head in heads)
        sharded = any(hasattr(head, "ds_id") for head in heads)
        softcap_is_usable = final_logit_softcapping is None or final_logit_softcapping > 0
        if set(outputs) <= _OUTPUTS and whole and not sharded and softcap_is_usable and logit_scale > 0:
            # scale * x, soft-capped at c, is scale times (x soft-capped at c / scale); the scale joins the temperature.
            result = linear_logprobs(
                hidden,
                weight,
                targets,
                bias=bias,
                temperature=temperature / logit_scale,
                softcap=None if final_logit_softcapping is None else final_logit_softcapping / logit_scale,
                return_entropy="entropy" in outputs,
            )
            logprobs, entropy = result if isinstance(result, tuple) else (result, None)
            return logprobs, entropy, None, None, None
        return ChunkedLogProbFunction.apply(
            hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping, logit_scale, outputs
        )


def _scores_valid_positions_only(device: torch.device) -> bool:
    """Where it has no Triton kernel, TRL multiplies prompts and padding too; on a CPU nothing is gained by that."""
    return device.type == "cpu" or _use_triton(device)


def _patch() -> Patch:
    require_parameters(ChunkedLogProbFunction.forward, _PARAMETERS)
    return Patch(
        "fgrl.integrations.trl.patch_logprobs",
        [
            Replacement(trl_utils, "_ChunkedLogProbFunction", LinearLogprobs),
            Replacement(trl_utils, "_use_triton", _scores_valid_positions_only),
        ],
    )


def patch_logprobs(trainer: Any = None) -> Patch:
    """Let TRL's trainers take log-probabilities and entropies from `fgrl.ops.linear_logprobs`: no logits are kept.

    GRPO, RLOO, DPO, KTO and SFT share one function, which this replaces for the whole process: in GRPO and RLOO for
    policy and reference, in DPO and KTO for the reference. The policy of DPO and KTO, and SFT, ask for metrics that
    need the logits (`mean_logits`, `is_top1`); those calls stay TRL's, as do heads that are sharded by ZeRO-3.

    Args:
        trainer: checked to be one that uses this function; None for those made later.

    Returns:
        The patch. `undo()` takes it back, and so does the end of a `with` block around it.

    Raises:
        ValueError: `trainer` does not compute its log-probabilities with this function.
        RuntimeError: it is patched already.
        ImportError: this TRL's function takes other arguments.

    Example:
        with patch_logprobs():
            GRPOTrainer(...).train()
    """
    if trainer is not None and not _has_fused_head(trainer):
        raise ValueError(
            f"trainer is a {type(trainer).__name__}, whose model has no fused LM head of TRL; it must be a GRPO, RLOO, "
            "DPO, KTO or SFT trainer of TRL"
        )
    return _patch().apply()


def patched() -> AbstractContextManager[Any]:
    """The patch within a block; it may hold already."""
    return nullcontext() if trl_utils._ChunkedLogProbFunction is LinearLogprobs else _patch()


def _has_fused_head(trainer: Any) -> bool:
    """Whether TRL's `add_fused_lm_head` has replaced the forward method of the trainer's model."""
    model = getattr(trainer, "model", None)
    if not isinstance(model, torch.nn.Module):
        return False
    forwards = (vars(module).get("forward") for module in model.modules())
    return any("fused_lm_head" in _arguments(forward) for forward in forwards)


def _arguments(forward: Any) -> tuple[str, ...]:
    """Names of the arguments of a forward method and of those that it wraps (mixed precision wraps it)."""
    names: tuple[str, ...] = ()
    while forward is not None:
        code = getattr(forward, "__code__", None)
        names += code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code else ()
        forward = getattr(forward, "__wrapped__", None)
    return names
