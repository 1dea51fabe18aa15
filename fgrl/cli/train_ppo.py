"""`fgrl train-ppo`: fine-grained PPO of a causal LM against a token reward model and reward functions."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from fgrl.cli._common import UsageError, parse_columns, require
from fgrl.cli._errors import usable
from fgrl.cli._functions import load_function
from fgrl.cli._models import load_reward_model
from fgrl.cli._numbers import integer, number
from fgrl.cli._training import (
    DTYPES,
    add_deprecated,
    add_run_arguments,
    build_config,
    check_out,
    last_checkpoint,
    leave_process_group,
    lora_config,
)
from fgrl.data.output import write_text

if TYPE_CHECKING:
    from fgrl.trainer import FineGrainedPPOConfig, FineGrainedPPOTrainer

NAME = "train-ppo"
HELP = "train a language model with PPO on token-level rewards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl train-ppo`."""
    parser.add_argument("source", help='prompts: .jsonl, .json, .ndjson (also .gz) or .parquet with a "prompt" a row')
    parser.add_argument("--model", required=True, help="causal LM to train: name, folder or .gguf")
    parser.add_argument("--tokenizer", help="its tokenizer (default: the model's)")
    parser.add_argument("--reward-model", action="append", metavar="MODEL", help="token reward model; may be repeated")
    parser.add_argument(
        "--reward-function",
        action="append",
        metavar="MODULE:FUNCTION",
        help="function called as TRL calls its reward functions; may be repeated",
    )
    parser.add_argument("--ref-model", metavar="MODEL", help="reference of the KL (default: what --reference says)")
    parser.add_argument(
        "--reference",
        choices=("start", "base"),
        help="the model as it starts, its adapters included (default), or its base without adapters",
    )
    parser.add_argument("--value-model", metavar="MODEL", help="value model to start from (default: the model)")
    parser.add_argument("--eval", metavar="FILE", help="prompts to sample from in evaluation")

    run = add_run_arguments(parser, "FineGrainedPPOConfig")
    for flag, whose, default in (
        ("--value-dtype", "the value model", "float32"),
        ("--ref-dtype", "the reference", "the policy's, or that of the checkpoint of --ref-model"),
        ("--reward-dtype", "the reward models", "that of the checkpoint"),
    ):
        run.add_argument(flag, choices=DTYPES, help=f"weights of {whose} (default: {default})")
    run.add_argument("--total-episodes", type=integer(1), help="completions to train on; sets the number of steps")
    run.add_argument("--learning-rate", type=number(0), help="of the policy (default: 1e-6)")
    run.add_argument("--value-learning-rate", type=number(0), help="of the value model (default: the policy's)")

    method = parser.add_argument_group("the method")
    method.add_argument("--reward-level", choices=("token", "sequence"), help="every token's reward, or the last one's")
    method.add_argument("--reward-scale", type=number(), help="factor of the token rewards (default: 1)")
    method.add_argument("--reward-clip", type=number(above=0), help="bound of the token rewards (default: none)")
    method.add_argument("--reward-kl-coef", type=number(0), help="weight of the KL in the rewards (default: 0.05)")
    method.add_argument("--reward-kl-estimator", choices=("k1", "k2", "k3", "abs"), help="its estimator (default: k1)")
    add_deprecated(method, "--kl-coef", "--reward-kl-coef", type=number(0))
    add_deprecated(method, "--kl-estimator", "--reward-kl-estimator", choices=("k1", "k2", "k3", "abs"))
    losses = ("clip", "gspo", "gspo-token", "gmpo", "cispo", "sapo", "reinforce")
    method.add_argument("--loss", choices=losses, help="the policy loss (default: clip)")
    method.add_argument("--num-ppo-epochs", type=integer(1), help="passes over each rollout (default: 4)")
    method.add_argument("--num-mini-batches", type=integer(1), help="optimizer steps a pass (default: 1)")
    method.add_argument("--gamma", type=number(0, 1), help="discount (default: 1)")
    method.add_argument("--lam", type=number(0, 1), help="trace decay of GAE (default: 0.95)")
    method.add_argument("--max-completion-length", type=integer(1), help="longest completion in tokens (default: 256)")
    method.add_argument("--temperature", type=number(above=0), help="of sampling (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Train, evaluate where there are prompts for it, and write the policy, with the value model below it."""
    require("transformers", "train")
    from fgrl.trainer import FineGrainedPPOConfig

    check_out(args)
    if not args.reward_model and not args.reward_function:
        raise UsageError("the reward is missing; there must be a --reward-model or a --reward-function")
    _train(args, build_config(FineGrainedPPOConfig, args, {"eval_strategy": "steps" if args.eval_steps else "no"}))
    leave_process_group()
    return 0


def _train(args: argparse.Namespace, config: FineGrainedPPOConfig) -> None:
    trainer = _trainer(args, config)
    result = trainer.train(resume_from_checkpoint=last_checkpoint(args))
    metrics = dict(result.metrics)
    if trainer.eval_dataset is not None:
        metrics.update(trainer.evaluate())
    trainer.save_model(args.out)
    if trainer.is_world_process_zero():
        _report(trainer, metrics, args.out)


def _trainer(args: argparse.Namespace, config: FineGrainedPPOConfig) -> FineGrainedPPOTrainer:
    from transformers import PrinterCallback

    from fgrl.data import read_prompts
    from fgrl.models import ValueModel, load_causal_lm, load_tokenizer
    from fgrl.models.fit import check_vocabulary
    from fgrl.trainer import FineGrainedPPOTrainer
    from fgrl.trainer.reward_sources import check_same_vocabulary

    loading: dict[str, Any] = {"attn_implementation": args.attn_implementation}
    scoring = {**loading, "trainable": False}
    with usable("--tokenizer" if args.tokenizer else "--model", args.tokenizer or args.model):
        tokenizer = load_tokenizer(args.tokenizer or args.model)
    with usable("--model", args.model):
        policy = load_causal_lm(args.model, dtype=_taken(config, "dtype"), **loading)
        check_vocabulary(tokenizer, policy)
    rewards: list[Any] = []
    for name in args.reward_model or []:
        reward_model, reward_tokenizer = load_reward_model(
            name, None, flag="--reward-model", dtype=config.reward_dtype, **scoring
        )
        check_same_vocabulary(tokenizer, reward_tokenizer)
        rewards.append(reward_model)
    rewards += [load_function("--reward-function", name) for name in args.reward_function or []]
    reference = value_model = None
    if args.ref_model:
        with usable("--ref-model", args.ref_model):
            reference = load_causal_lm(args.ref_model, dtype=_taken(config, "ref_dtype"), **scoring)
    if args.value_model:
        with usable("--value-model", args.value_model):
            value_model = ValueModel.from_pretrained(args.value_model, dtype=_taken(config, "value_dtype"), **loading)
    columns = parse_columns(args.column)
    trainer = FineGrainedPPOTrainer(
        policy,
        ref_model=reference,
        reward_model=rewards,
        value_model=value_model,
        args=config,
        processing_class=tokenizer,
        train_dataset=read_prompts(args.source, columns=columns),
        eval_dataset=read_prompts(args.eval, columns=columns) if args.eval else None,
        peft_config=lora_config(args.lora_rank),
    )
    if args.quiet:
        trainer.remove_callback(PrinterCallback)
    return trainer


def _taken(config: FineGrainedPPOConfig, option: str) -> str | None:
    """A dtype that a model is loaded in here: the trainer gets the model, and no dtype to load it in."""
    dtype: str | None = getattr(config, option)
    setattr(config, option, None)
    return dtype


def _report(trainer: FineGrainedPPOTrainer, metrics: dict[str, Any], out: str) -> None:
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    content = {"final": metrics, "history": trainer.state.log_history}
    write_text(os.path.join(out, "metrics.json"), json.dumps(content, indent=2))
    for label, entry in (("first rollout", history[:1]), ("last rollout", history[-1:])):
        for values in entry:
            shown = ("reward", "kl_per_sequence", "completion_length", "entropy")
            print(f"{label:14}" + "  ".join(f"{name} {values[name]:.4f}" for name in shown if name in values))
    print(f"policy in {out}, its value model in {os.path.join(out, 'value_model')}")
