"""`patch_logprobs`: TRL's log-probabilities from `linear_logprobs`, the same within rounding; and undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.utils as trl_utils
from datasets import Dataset
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.kernels import ChunkedLogProbFunction
from trl_task import PROMPTS, config, history, outcome, weights

from fgrl.integrations.trl import logprobs as adapter
from fgrl.integrations.trl import patch_logprobs

CHUNK = 32  # of TRL's vocabulary: several, the last one partial


def head(rows: int, *, bias: bool, dtype: torch.dtype = torch.float32) -> list[Any]:
    hidden, weight = torch.randn(rows, 24, dtype=dtype), torch.randn(75, 24, dtype=dtype)
    vector = torch.randn(75, dtype=dtype) if bias else None
    for tensor in (hidden, weight, vector):
        if tensor is not None:
            tensor.requires_grad_()
    return [hidden, weight, vector, torch.randint(0, 75, (rows,))]


def run(function: Any, inputs: list[Any], options: tuple[Any, ...]) -> list[torch.Tensor]:
    """Results and gradients of `function`, under fixed gradients of its results."""
    results = [result for result in function.apply(*inputs, *options) if result is not None]
    leaves = [tensor for tensor in inputs[:3] if tensor is not None]
    total = sum((result * torch.linspace(-1, 2, len(result))).sum() for result in results)
    assert isinstance(total, torch.Tensor)
    return [*results, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("outputs", [("log_probs",), ("log_probs", "entropy")], ids=["logprobs", "entropy"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(
    ("softcap", "scale"), [(None, 1.0), (None, 0.25), (3.0, 1.0), (3.0, 0.25)], ids=["", "scale", "softcap", "both"]
)
def test_results_and_gradients_are_trls(
    outputs: tuple[str, ...], bias: bool, softcap: float | None, scale: float
) -> None:
    inputs, options = head(11, bias=bias), (0.7, CHUNK, softcap, scale, outputs)
    ours = run(adapter.LinearLogprobs, inputs, options)
    theirs = run(ChunkedLogProbFunction, inputs, options)
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=2e-5, atol=2e-5)


def test_bf16_logits_are_not_rounded_before_the_softmax() -> None:
    """Against float64 from the same bf16 inputs."""
    inputs = head(64, bias=False, dtype=torch.bfloat16)
    exact = [
        tensor.detach().double() if tensor is not None and tensor.is_floating_point() else tensor for tensor in inputs
    ]
    truth = torch.log_softmax(exact[0] @ exact[1].T, -1).gather(1, exact[3][:, None])[:, 0]
    errors = [
        (function.apply(*inputs, 1.0, CHUNK, None, 1.0, ("log_probs",))[0].double() - truth).abs().max().item()
        for function in (adapter.LinearLogprobs, ChunkedLogProbFunction)
    ]
    assert errors[0] < 1e-5 < 1e-3 < errors[1]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_with_nothing_to_score_stays_connected(rows: int) -> None:
    inputs = head(rows, bias=False)
    logprobs, entropy, *rest = adapter.LinearLogprobs.apply(*inputs, 1.0, CHUNK, None, 1.0, ("log_probs", "entropy"))
    assert logprobs is not None
    assert entropy is not None
    assert rest == [None] * 3
    logprobs.sum().backward()
    assert inputs[0].grad.shape == (rows, 24)


def _unsharded(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _zero3(weight: torch.Tensor) -> torch.Tensor:
    weight.ds_id = 0  # type: ignore[attr-defined]
    return weight


@pytest.mark.parametrize(
    ("outputs", "scale", "softcap", "change"),
    [
        (("log_probs", "is_top1"), 1.0, None, _unsharded),
        (("log_probs", "entropy", "mean_logits"), 1.0, None, _unsharded),
        (("log_probs", "log_sum_sq_probs"), 1.0, None, _unsharded),
        (("log_probs",), -0.5, None, _unsharded),
        (("log_probs",), 0.0, None, _unsharded),
        (("log_probs", "entropy"), 1.0, None, _zero3),
    ],
    ids=["is_top1", "mean_logits", "log_sum_sq_probs", "negative scale", "scale 0", "ZeRO-3"],
)
def test_what_linear_logprobs_cannot_give_is_left_to_trl(
    outputs: tuple[str, ...], scale: float, softcap: float | None, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    inputs = head(7, bias=False)
    inputs[1] = change(inputs[1])
    options = (1.0, CHUNK, softcap, scale, outputs)
    ours, theirs = (f.apply(*inputs, *options) for f in (adapter.LinearLogprobs, ChunkedLogProbFunction))
    for mine, their in zip(ours, theirs, strict=True):
        assert (mine is None and their is None) or torch.equal(mine, their)
    assert type(ours[0].grad_fn).__name__ == "ChunkedLogProbFunctionBackward"


def test_undo_restores_and_a_second_patch_is_refused() -> None:
    before = (trl_utils._ChunkedLogProbFunction, trl_utils._use_triton)
    patch = patch_logprobs()
    assert trl_utils._ChunkedLogProbFunction is adapter.LinearLogprobs
    with pytest.raises(RuntimeError, match="patched already"):
        patch_logprobs()
    patch.undo()
    assert (trl_utils._ChunkedLogProbFunction, trl_utils._use_triton) == before
    with patch_logprobs():
        assert trl_utils._ChunkedLogProbFunction is adapter.LinearLogprobs
    assert (trl_utils._ChunkedLogProbFunction, trl_utils._use_triton) == before


def test_a_function_with_other_arguments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed(ChunkedLogProbFunction):
        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, targets: Any) -> Any: ...

    monkeypatch.setattr(adapter, "ChunkedLogProbFunction", Changed)
    with pytest.raises(ImportError, match=r"takes \(ctx, hidden, weight, targets\); it must take"):
        patch_logprobs()


@pytest.mark.parametrize("trainer", [object(), None], ids=["no trainer", "reward trainer"])
def test_a_trainer_that_does_not_use_it_is_refused(trainer: Any) -> None:
    class Other:
        model = torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match="has no fused LM head of TRL; it must be a GRPO, RLOO, DPO, KTO or SFT"):
        patch_logprobs(trainer or Other())


PAIRS = Dataset.from_dict(
    {"prompt": ["the cat", "a dog"] * 2, "chosen": [" sat on the mat", " ran"] * 2, "rejected": [" blue", " tree"] * 2}
)
LABELLED = Dataset.from_dict(
    {
        "prompt": ["the cat", "a dog"] * 2,
        "completion": [" sat", " ran", " blue", " tree"],
        "label": [True, True, False, False],
    }
)
TEXTS = Dataset.from_dict({"text": ["the cat sat on the mat", "a dog ran"] * 2})


def options_of(name: str) -> dict[str, Any]:
    """The task's options that `name` has too."""
    common = config(Path("unused")).to_dict()
    kept = ("use_cpu", "bf16", "disable_tqdm", "save_strategy", "logging_steps", "max_steps", "learning_rate")
    sampling = ("num_generations", "max_completion_length") if name == "rloo" else ()
    return {
        "report_to": [],
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": False,
        **{option: common[option] for option in (*kept, *sampling)},
    }


def trainer_of(name: str, model: str, tokenizer: Any, folder: Path) -> Any:
    common = {"model": model, "processing_class": tokenizer}
    if name == "grpo":
        return GRPOTrainer(
            reward_funcs=outcome, args=config(folder, beta=0.1, num_iterations=2), train_dataset=PROMPTS, **common
        )
    args, data, kind, extra = {
        "rloo": (RLOOConfig, PROMPTS, RLOOTrainer, {"reward_funcs": outcome}),
        "dpo": (DPOConfig, PAIRS, DPOTrainer, {}),
        "kto": (KTOConfig, LABELLED, KTOTrainer, {}),
        "sft": (SFTConfig, TEXTS, SFTTrainer, {}),
    }[name]
    return kind(args=args(output_dir=str(folder), **options_of(name)), train_dataset=data, **common, **extra)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["grpo", "rloo", "dpo", "kto", "sft"])
def test_training_is_the_same_within_rounding(
    name: str, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of each trainer, with and without the patch; and the op was in it."""
    calls = []
    op = adapter.linear_logprobs
    monkeypatch.setattr(adapter, "linear_logprobs", lambda *a, **k: calls.append(name) or op(*a, **k))
    runs = []
    for patched in (False, True):
        trainer = trainer_of(name, str(tiny_checkpoint), tiny_tokenizer, tmp_path)
        if patched:
            with patch_logprobs(trainer):
                trainer.train()
        else:
            trainer.train()
            assert not calls
        runs.append((history(trainer), weights(trainer.model)))
    (stock, stock_weights), (ours, our_weights) = runs
    assert bool(calls) == (name != "sft")  # SFT asks for `is_top1` in every call
    assert len(ours) == 2
    for before, after in zip(stock, ours, strict=True):
        assert after == pytest.approx(before, rel=1e-4, abs=1e-5, nan_ok=True)
    torch.testing.assert_close(our_weights, stock_weights, rtol=1e-3, atol=1e-4)
