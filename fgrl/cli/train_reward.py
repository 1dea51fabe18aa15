"""`fgrl train-reward`: a token reward model from edited pairs."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from fgrl.cli._common import UsageError, require
from fgrl.cli._models import load_reward_model

if TYPE_CHECKING:
    from fgrl.trainer import TokenRewardConfig, TokenRewardTrainer

NAME = "train-reward"
HELP = "train a token reward model on edited pairs"

_OPTIONS = {  # flag -> field of TokenRewardConfig, where the names differ
    "out": "output_dir",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
}
_SAME_NAME = (
    "learning_rate",
    "max_steps",
    "max_length",
    "max_prompt_length",
    "edit_unit",
    "reward_level",
    "reduction",
    "unchanged_weight",
    "margin",
    "packed",
    "streaming",
    "attn_implementation",
    "bf16",
    "seed",
    "on_error",
    "eval_steps",
    "save_steps",
    "logging_steps",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fgrl train-reward`."""
    parser.add_argument("source", help="edited pairs: .jsonl, .json, .ndjson (also .gz) or .parquet")
    parser.add_argument("--model", required=True, help="causal LM or reward model to start from: name, folder or .gguf")
    parser.add_argument("--tokenizer", help="its tokenizer (default: the model's)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the reward model is written")
    parser.add_argument("--eval", metavar="FILE", help="held-out edited pairs")
    parser.add_argument("--column", action="append", metavar="FIELD=NAME", help="column of a field: prompt=instruction")
    parser.add_argument("--on-error", choices=("raise", "skip"), help="what to do at a bad row (default: raise)")

    method = parser.add_argument_group("the reward")
    method.add_argument(
        "--reward-level", choices=("token", "sequence"), help="read at edited tokens, or at the last one"
    )
    method.add_argument("--edit-unit", choices=("token", "word"), help="widen edits to whole words (default: token)")
    method.add_argument("--reduction", choices=("sum", "mean"), help="over the edited tokens of a side (default: sum)")
    method.add_argument("--unchanged-weight", type=float, help="weight of the penalty on kept tokens (default: 0)")
    method.add_argument("--margin", type=float, help="margin of the Bradley-Terry loss (default: 0)")

    run = parser.add_argument_group("the run")
    run.add_argument("--learning-rate", type=float, help="peak learning rate (default: 2e-5)")
    run.add_argument("--epochs", type=float, help="passes over the pairs (default: 3)")
    run.add_argument("--max-steps", type=int, help="optimizer steps instead of epochs")
    run.add_argument("--batch-size", type=int, help="pairs a device and micro-batch (default: 8)")
    run.add_argument("--eval-batch-size", type=int, help="the same in evaluation (default: 8)")
    run.add_argument("--gradient-accumulation", type=int, help="micro-batches a step (default: 1)")
    run.add_argument("--max-length", type=int, help="tokens of prompt and response (default: 1024)")
    run.add_argument("--max-prompt-length", type=int, help="tokens of the prompt")
    run.add_argument("--packed", action="store_true", default=None, help="pack sequences instead of padding them")
    run.add_argument("--streaming", action="store_true", default=None, help="read the file while training")
    run.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights")
    run.add_argument("--bf16", action="store_true", default=None, help="mixed precision")
    run.add_argument("--cpu", action="store_true", help="train on the CPU even where there is a GPU")
    run.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    run.add_argument("--attn-implementation", help='"auto" (default) or a name of transformers')
    run.add_argument("--lora-rank", type=int, help="train adapters of this rank, merged into the result, and the head")
    run.add_argument("--seed", type=int, help="default: 42")
    run.add_argument("--eval-steps", type=int, help="evaluate every so many steps (default: every epoch)")
    run.add_argument("--save-steps", type=int, help="checkpoint every so many steps (default: never)")
    run.add_argument("--logging-steps", type=int, help="log every so many steps (default: 10)")
    run.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out")
    run.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    run.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="any other field of TokenRewardConfig, value as YAML"
    )


def run(args: argparse.Namespace) -> int:
    """Train, evaluate where there is held-out data, and write the model."""
    require("transformers", "train")
    if os.path.isdir(args.out) and os.listdir(args.out) and not (args.overwrite or args.resume):
        raise UsageError(f"--out {args.out} is not empty: name another folder, or add --overwrite or --resume")
    trainer = _trainer(args)
    result = trainer.train(resume_from_checkpoint=_last_checkpoint(args.out) if args.resume else None)
    metrics = dict(result.metrics)
    if trainer.eval_dataset is not None:
        metrics.update(_last_evaluation(trainer) or trainer.evaluate())
    _save(trainer, args)
    if trainer.is_world_process_zero():
        _report(trainer, metrics, args.out)
    return 0


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
    peft_config = None
    if args.lora_rank:
        require("peft", "train")
        from peft import LoraConfig

        peft_config = LoraConfig(r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules="all-linear")
    model, tokenizer = load_reward_model(
        args.model, args.tokenizer, attn_implementation=config.attn_implementation, **(config.model_init_kwargs or {})
    )
    trainer = TokenRewardTrainer(
        model,
        config,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    if args.quiet:
        trainer.remove_callback(PrinterCallback)
    return trainer


def _config(args: argparse.Namespace) -> TokenRewardConfig:
    from fgrl.trainer import TokenRewardConfig

    options: dict[str, Any] = {
        "report_to": "none",
        "logging_steps": 10,
        "save_strategy": "no" if args.save_steps is None else "steps",
        "disable_tqdm": args.quiet or not sys.stderr.isatty(),
        "use_cpu": args.cpu,
    }
    if args.eval is not None:
        options["eval_strategy"] = "epoch" if args.eval_steps is None else "steps"
    if args.gradient_checkpointing:
        options["gradient_checkpointing"] = True
    if args.dtype is not None:
        options["model_init_kwargs"] = {"dtype": args.dtype}
    for flag, field in (*_OPTIONS.items(), *((name, name) for name in _SAME_NAME)):
        if getattr(args, flag) is not None:
            options[field] = getattr(args, flag)
    options.update(_parse_settings(args.set, TokenRewardConfig))
    try:
        return TokenRewardConfig(**options)
    except (ValueError, TypeError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def _parse_settings(settings: list[str] | None, config: type) -> dict[str, Any]:
    import yaml

    fields = {field.name for field in dataclasses.fields(config) if field.init}
    parsed = {}
    for setting in settings or []:
        name, separator, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not separator or name not in fields:
            raise UsageError(f"--set {setting} must be NAME=VALUE with a field of {config.__name__}")
        try:
            parsed[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {setting} is not YAML: {' '.join(str(error).split())}") from error
    return parsed


def parse_columns(options: list[str] | None) -> dict[str, str]:
    """`["prompt=instruction"]` -> `{"prompt": "instruction"}`."""
    columns = {}
    for option in options or []:
        field, separator, name = option.partition("=")
        if not separator or not field or not name:
            raise UsageError(f"--column {option} must be FIELD=NAME, such as prompt=instruction")
        columns[field] = name
    return columns


def _last_evaluation(trainer: TokenRewardTrainer) -> dict[str, Any] | None:
    """Metrics of the model as it is now, where the run ended with an evaluation."""
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry:
            return dict(entry) if entry["step"] == trainer.state.global_step else None
    return None


def _last_checkpoint(folder: str) -> str:
    from transformers.trainer_utils import get_last_checkpoint

    checkpoint = get_last_checkpoint(folder) if os.path.isdir(folder) else None
    if checkpoint is None:
        raise UsageError(f"--resume found no checkpoint in {folder}: run with --save-steps first")
    return str(checkpoint)


def _save(trainer: TokenRewardTrainer, args: argparse.Namespace) -> None:
    if not args.lora_rank:
        trainer.save_model(args.out)  # all processes take part where weights are sharded
    elif trainer.is_world_process_zero():
        trainer.reward_model.save_pretrained(args.out)
        trainer.processing_class.save_pretrained(args.out)


def _report(trainer: TokenRewardTrainer, metrics: dict[str, Any], out: str) -> None:
    import json

    with open(os.path.join(out, "metrics.json"), "w", encoding="utf-8") as file:
        json.dump(metrics, file, indent=2)
    shown = ("train_loss", "eval_loss", "eval_pair_accuracy", "eval_margin", "eval_edit_auc", "eval_span_auc")
    for name in shown:
        if name in metrics:
            print(f"{name:20} {metrics[name]:.4f}")
    for name, dataset in (("source", trainer.train_dataset), ("eval", trainer.eval_dataset)):
        if getattr(dataset, "skipped", 0):
            print(f"skipped {dataset.skipped} bad rows of {name}; the first: {dataset.errors[0]}")
    print(f"reward model in {out}")
