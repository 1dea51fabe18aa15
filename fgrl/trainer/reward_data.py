"""Whatever holds edited pairs, as a dataset of encoded pairs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fgrl.data import EncodedPair, PairDataset, PairEncoder, StreamingPairDataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fgrl.trainer.reward_config import TokenRewardConfig

logger = logging.getLogger(__name__)


def encode_dataset(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    args: TokenRewardConfig,
    max_length: int,
    *,
    training: bool = False,
) -> Any:
    """`dataset` ready for `PairCollator`: what is encoded stays as it is, a dict is encoded by value.

    Args:
        dataset: a path, rows, or something encoded.
        tokenizer: encodes raw rows.
        args: the other options of the encoding.
        max_length: tokens of prompt and response together: `args.max_length`, or less where the model takes less.
        training: shuffle a stream.

    Raises:
        ValueError: there are raw rows but no tokenizer, or a dataset in memory without one pair.
    """
    if dataset is None or isinstance(dataset, (PairDataset, StreamingPairDataset)):
        return dataset
    if isinstance(dataset, dict):
        return {name: encode_dataset(part, tokenizer, args, max_length) for name, part in dataset.items()}
    if isinstance(dataset, (list, tuple)) and dataset and isinstance(dataset[0], EncodedPair):
        return dataset
    if tokenizer is None:
        raise ValueError("processing_class is None; it must be a tokenizer, or the datasets encoded by fgrl.data")
    encoder = PairEncoder(
        tokenizer,
        max_length=max_length,
        max_prompt_length=args.max_prompt_length,
        edit_unit=args.edit_unit,
    )
    if args.streaming:
        buffer = args.shuffle_buffer if training else 0
        seed = args.seed if args.data_seed is None else args.data_seed
        return StreamingPairDataset(dataset, encoder, on_error=args.on_error, shuffle_buffer=buffer, seed=seed)
    encoded = PairDataset(dataset, encoder, on_error=args.on_error)
    if encoded.skipped:
        logger.warning("Skipped %d bad rows; the first: %s", encoded.skipped, encoded.errors[0])
    if len(encoded) == 0:
        raise ValueError(f"{'train' if training else 'eval'}_dataset has no usable pair; it must have at least one")
    return encoded
