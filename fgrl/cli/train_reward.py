"""`fgrl train-reward`: a token reward model from edited pairs."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from fgrl.cli._common import parse_columns, require
from fgrl.cli._models import load_reward_model
from fgrl.cli._numbers import integer, number
from fgrl.cli._training import (
    add_run_arguments,
    build_config,
    check_out,
    last_checkpoint,
    leave_process_group,
    lora_config,
)
from fgrl.data.output import write_text

if TYPE_CHECKING:
    from fgrl.trainer import TokenRewardConfig, TokenRewardTrainer

NAME = "train-reward"
HELP = "train a token reward model on edited pairs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl train-reward`."""
    parser.add_argument("source", help="edited pairs: .jsonl, .json, .ndjson (also .gz) or .parquet")
    parser.add_argument("--model", required=True, help="causal LM or reward model to start from: name, folder or .gguf")
    parser.add_argument("--tokenizer", help="its tokenizer (default: the model's)")
    parser.add_argument("--eval", metavar="FILE", help="held-out edited pairs")
    parser.add_argument("--on-error", choices=("raise", "skip"), help="what to do at a bad row (default: raise)")

    run = add_run_arguments(parser, "TokenRewardConfig")
    run.add_argument("--learning-rate", type=number(0), help="peak learning rate (default: 2e-5)")
    run.add_argument("--epochs", type=number(above=0), help="passes over the pairs (default: 3)")
    run.add_argument("--max-length", type=integer(1), help="tokens of prompt and response (default: 1024)")
    run.add_argument("--packed", action="store_true", default=None, help="pack sequences instead of padding them")
    run.add_argument("--streaming", action="store_true", default=None, help="read the file while training")

    method = parser.add_argument_group("the reward")
    method.add_argument(
        "--reward-level", choices=("token", "sequence"), help="read at edited tokens, or at the last one"
    )
    method.add_argument("--edit-unit", choices=("token", "word"), help="widen edits to whole words (default: token)")
    method.add_argument("--reduction", choices=("sum", "mean"), help="over the edited tokens of a side (default: sum)")
    method.add_argument("--unchanged-weight", type=number(0), help="weight of the penalty on kept tokens (default: 0)")
    method.add_argument("--margin", type=number(), help="margin of the Bradley-Terry loss (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Train, evaluate where there is held-out data, and write the model."""
    require("transformers", "train")
    check_out(args)
    _train(args)
    leave_process_group()
    return 0


def _train(args: argparse.Namespace) -> None:
    trainer = _trainer(args)
    result = trainer.train(resume_from_checkpoint=last_checkpoint(args))
    metrics = dict(result.metrics)
    if trainer.eval_dataset is not None:
        metrics.update(_last_evaluation(trainer) or trainer.evaluate())
    _save(trainer, args)
    if trainer.is_world_process_zero():
        _report(trainer, metrics, args.out)


def _trainer(args: argparse.Namespace) -> TokenRewardTrainer:
    from transformers import PrinterCallback

    from fgrl.data import read_pairs
    from fgrl.trainer import TokenRewardTrainer

    config = _config(args)
    columns = parse_columns(args.column)
    train, held_out = (
        None if path is None else read_pairs(path, on_error=config.on_error, columns=columns)
        for path in (args.source, args.eval)
    )
    options: dict[str, Any] = {"attn_implementation": config.attn_implementation, **(config.model_init_kwargs or {})}
    if config.dtype is not None:
        options["dtype"], config.dtype = config.dtype, None  # the trainer gets the model, and no dtype to load it in
    model, tokenizer = load_reward_model(args.model, args.tokenizer, **options)
    trainer = TokenRewardTrainer(
        model,
        config,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=lora_config(args.lora_rank),
    )
    if args.quiet:
        trainer.remove_callback(PrinterCallback)
    return trainer


def _config(args: argparse.Namespace) -> TokenRewardConfig:
    from fgrl.trainer import TokenRewardConfig

    defaults: dict[str, Any] = {"logging_steps": 10}
    if args.eval is not None:
        defaults["eval_strategy"] = "epoch" if args.eval_steps is None else "steps"
    return build_config(TokenRewardConfig, args, defaults)


def _last_evaluation(trainer: TokenRewardTrainer) -> dict[str, Any] | None:
    """Metrics of the model as it is now, where the run ended with an evaluation."""
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry:
            return dict(entry) if entry["step"] == trainer.state.global_step else None
    return None


def _save(trainer: TokenRewardTrainer, args: argparse.Namespace) -> None:
    if not args.lora_rank:
        trainer.save_model(args.out)  # all processes take part where weights are sharded
    elif trainer.is_world_process_zero():
        trainer.reward_model.save_pretrained(args.out)
        trainer.processing_class.save_pretrained(args.out)


def _report(trainer: TokenRewardTrainer, metrics: dict[str, Any], out: str) -> None:
    import json

    write_text(os.path.join(out, "metrics.json"), json.dumps(metrics, indent=2))
    shown = ("train_loss", "eval_loss", "eval_pair_accuracy", "eval_margin", "eval_edit_auc", "eval_span_auc")
    for name in shown:
        if name in metrics:
            print(f"{name:20} {metrics[name]:.4f}")
    for name, dataset in (("source", trainer.train_dataset), ("eval", trainer.eval_dataset)):
        if getattr(dataset, "skipped", 0):
            print(f"skipped {dataset.skipped} bad rows of {name}; the first: {dataset.errors[0]}")
    print(f"reward model in {out}")
