"""What `fgrl train-reward` and `fgrl train-ppo` share: from flags to a training configuration, and where to resume."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from fgrl.cli._common import Renamed, UsageError
from fgrl.cli._numbers import integer
from fgrl.cli._settings import parse_settings
from fgrl.data.output import check_outputs

ConfigT = TypeVar("ConfigT")
_MODELS = ("ref_model", "value_model", "reward_model")

DTYPES = ("auto", "float32", "bfloat16", "float16")
RENAMED = {  # flag -> field of the configuration, where the names differ
    "out": "output_dir",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "cpu": "use_cpu",
}


def add_deprecated(group: argparse._ArgumentGroup, old: str, new: str, **options: Any) -> None:
    """Accept the option `old` as `new` for one release, with a warning on stderr; help does not show it."""
    group.add_argument(old, action=Renamed, dest=new[2:].replace("-", "_"), help=argparse.SUPPRESS, **options)


def add_run_arguments(parser: argparse.ArgumentParser, config_name: str) -> argparse._ArgumentGroup:
    """Add the options of the training run itself; return their group, for a command to add its own."""
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the model is written")
    parser.add_argument("--column", action="append", metavar="FIELD=NAME", help="column of a field: prompt=instruction")
    run = parser.add_argument_group("the run")
    run.add_argument("--batch-size", type=integer(1), help="sequences or pairs a device and micro-batch (default: 8)")
    run.add_argument("--eval-batch-size", type=integer(1), help="the same in evaluation (default: 8)")
    run.add_argument("--gradient-accumulation", type=integer(1), help="micro-batches a step (default: 1)")
    run.add_argument("--max-steps", type=integer(1), help="optimizer steps instead of epochs")
    run.add_argument(
        "--max-prompt-length", type=integer(1), help="tokens of the prompt; longer ones lose their beginning"
    )
    run.add_argument(
        "--dtype",
        choices=DTYPES,
        help="weights to train (default: float32; auto: that of the checkpoint; half precision learns little)",
    )
    run.add_argument("--bf16", action="store_true", default=None, help="mixed precision")
    run.add_argument("--cpu", action="store_true", default=None, help="train on the CPU even where there is a GPU")
    run.add_argument("--gradient-checkpointing", action="store_true", default=None, help="less memory, more time")
    run.add_argument("--attn-implementation", default="auto", help='"auto" (default) or a name of transformers')
    run.add_argument("--lora-rank", type=integer(1), help="train adapters of this rank instead of all weights")
    run.add_argument("--seed", type=integer(0), help="default: 42")
    run.add_argument("--eval-steps", type=integer(1), help="evaluate every so many steps")
    run.add_argument("--save-steps", type=integer(1), help="checkpoint every so many steps (default: never)")
    run.add_argument("--logging-steps", type=integer(1), help="log every so many steps")
    run.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out")
    run.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    run.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help=f"any other field of {config_name}, value as YAML"
    )
    return run


def check_out(args: argparse.Namespace) -> None:
    """Raise UsageError where `--out` cannot be written, holds files that nobody gave up, or is a model that is read."""
    inputs = {f"--{name.replace('_', '-')}": getattr(args, name, None) for name in ("model", "tokenizer", *_MODELS)}
    for flag, value in inputs.items():
        for path in value if isinstance(value, list) else [value]:
            check_outputs({"--out": args.out}, {flag: path})
    try:
        os.makedirs(args.out, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {args.out} cannot be used: {error.strerror}; it must be a folder") from error
    if not os.access(args.out, os.W_OK):
        raise UsageError(f"--out {args.out} cannot be written; it must be a folder that can")
    if os.path.isdir(args.out) and os.listdir(args.out) and not (args.overwrite or args.resume):
        raise UsageError(
            f"--out {args.out} is not empty; it must be another folder, or come with --overwrite or --resume"
        )


def build_config(config: type[ConfigT], args: argparse.Namespace, defaults: Mapping[str, Any]) -> ConfigT:
    """The configuration dataclass, from `defaults`, then the flags that were given, then `--set`.

    Raises:
        UsageError: an option that the configuration refuses.
    """
    fields = {field.name for field in dataclasses.fields(config) if field.init}  # type: ignore[arg-type]
    options: dict[str, Any] = {
        "report_to": "none",
        "save_strategy": "no" if args.save_steps is None else "steps",
        "disable_tqdm": args.quiet or not sys.stderr.isatty(),
        **defaults,
    }
    for flag, value in vars(args).items():
        field = RENAMED.get(flag, flag)
        if field in fields and value is not None:
            options[field] = value
    options.update(parse_settings(args.set, config))
    try:
        return config(**options)
    except (ValueError, TypeError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def lora_config(rank: int | None) -> Any:
    """A LoRA configuration on all linear layers, or None."""
    if not rank:
        return None
    from fgrl.cli._common import require

    require("peft", "train")
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")


def last_checkpoint(args: argparse.Namespace) -> str | None:
    """The checkpoint to resume from, or None without `--resume`."""
    if not args.resume:
        return None
    from transformers.trainer_utils import get_last_checkpoint

    checkpoint = get_last_checkpoint(args.out) if os.path.isdir(args.out) else None
    if checkpoint is None:
        raise UsageError(f"--resume found no checkpoint in {args.out}; there must be one, which --save-steps writes")
    return str(checkpoint)


def leave_process_group() -> None:
    """Destroy the process group of a run on several devices, once nothing refers to its trainer any more.

    PyTorch's threads of gloo abort a process that ends while they hold a tensor of the last collective
    (pytorch/pytorch#190489), and a group ends its threads only when the last model wrapped in it is gone.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
