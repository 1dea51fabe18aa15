"""Options of the token reward trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from transformers import TrainingArguments

from fgrl.trainer.options import Refusals, check_dtype, check_options


@dataclass
class TokenRewardConfig(TrainingArguments):
    """`transformers.TrainingArguments` plus the options of the reward.

    Args:
        reward_level: "token" scores a response by its edited tokens. "sequence" by its last token alone: the
            Bradley-Terry loss of an ordinary reward model, in the same code.
        reduction: "sum" or "mean" over the edited tokens of each side.
        unchanged_weight: weight of the penalty on the squared rewards of kept tokens.
        margin: how far the chosen score must lie above the rejected one.
        max_length: tokens of prompt and response together, or the model's context where that is shorter; a longer
            prompt loses its beginning first.
        max_prompt_length: tokens of the prompt; None for whatever the response leaves.
        edit_unit: "token", or "word" to widen every edit to the whole word.
        packed: put the sequences of a batch one after the other instead of padding them.
        pad_to_multiple_of: pad to a multiple of this length.
        streaming: read the files while training instead of before it, so that memory does not grow with them. Needs
            `max_steps`.
        shuffle_buffer: rows among which a streamed file is shuffled.
        on_error: "raise" at a bad row, or "skip" it and count it.
        attn_implementation: how a model given by name is loaded; see `fgrl.models.resolve_attention`.
        dtype: of the weights, where the model is given by name: "float32" (default, since half precision is too coarse
            for most updates), "bfloat16", "float16", or "auto", that of the checkpoint.
        model_init_kwargs: more options for `TokenRewardModel.from_pretrained`, where the model is given by name.
    """

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Not used: pairs are not model inputs."}
    )
    reward_level: Literal["token", "sequence"] = field(default="token", metadata={"help": '"token" or "sequence".'})
    reduction: Literal["sum", "mean"] = field(
        default="sum", metadata={"help": '"sum" or "mean" over the edited tokens of each side.'}
    )
    unchanged_weight: float = field(default=0.0, metadata={"help": "Weight of the penalty on kept tokens."})
    margin: float = field(default=0.0, metadata={"help": "Margin of the Bradley-Terry loss."})
    max_length: int = field(default=1024, metadata={"help": "Tokens of prompt and response together."})
    max_prompt_length: int | None = field(default=None, metadata={"help": "Tokens of the prompt."})
    edit_unit: Literal["token", "word"] = field(default="token", metadata={"help": '"token" or "word".'})
    packed: bool = field(default=False, metadata={"help": "Pack the sequences of a batch instead of padding them."})
    pad_to_multiple_of: int | None = field(default=None, metadata={"help": "Pad to a multiple of this length."})
    streaming: bool = field(default=False, metadata={"help": "Read the files while training."})
    shuffle_buffer: int = field(default=4096, metadata={"help": "Rows among which a streamed file is shuffled."})
    on_error: Literal["raise", "skip"] = field(default="raise", metadata={"help": '"raise" or "skip" at a bad row.'})
    attn_implementation: str | None = field(default="auto", metadata={"help": '"auto" or a name of transformers.'})
    dtype: str | None = field(default=None, metadata={"help": 'Of the weights: "float32" (default), "auto", ...'})
    model_init_kwargs: dict[str, Any] | None = field(default=None, metadata={"help": "JSON, for from_pretrained."})

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        check_dtype("dtype", self.dtype)
        if self.streaming and self.max_steps <= 0:
            raise ValueError(f"max_steps is {self.max_steps}; it must be positive with streaming, which has no length")
        if self.accelerator_config.dispatch_batches is None:
            self.accelerator_config.dispatch_batches = False  # dispatching would cut batches between the two sides
        check_options(self, _REFUSED, _REFUSED_ACCELERATE if self.world_size > 1 else {})
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns is True; it must be False: pairs are not inputs of the model")


_REFUSED: Refusals = {
    "train_sampling_strategy": (("random", "sequential"), "pairs are not grouped by length"),
}
_REFUSED_ACCELERATE: Refusals = {
    "even_batches": ((True,), "processes with different numbers of batches would wait for each other for ever"),
}
_CHOICES = {
    "reward_level": ("token", "sequence"),
    "reduction": ("sum", "mean"),
    "edit_unit": ("token", "word"),
    "on_error": ("raise", "skip"),
}
