"""Edited pairs and prompts: reading, tokenizing, aligning, collating.

Needs torch alone; Parquet needs pyarrow, and a tokenizer is whatever `transformers` object the caller brings.
"""

from fgrl.data.aligner import AlignedPair, ResponseAligner
from fgrl.data.collate import PairCollator, pad_token_id
from fgrl.data.dataset import PairDataset, StreamingPairDataset
from fgrl.data.encode import EncodedPair, PairEncoder
from fgrl.data.pairs import EditedPair, PairReader, read_pairs
from fgrl.data.prompts import PromptDataset, PromptEncoder, PromptReader, read_prompts
from fgrl.data.rows import RowError
from fgrl.data.tokens import HuggingFaceTokenizer, PlainTokenizer

__all__ = [
    "AlignedPair",
    "EditedPair",
    "EncodedPair",
    "HuggingFaceTokenizer",
    "PairCollator",
    "PairDataset",
    "PairEncoder",
    "PairReader",
    "PlainTokenizer",
    "PromptDataset",
    "PromptEncoder",
    "PromptReader",
    "ResponseAligner",
    "RowError",
    "StreamingPairDataset",
    "pad_token_id",
    "read_pairs",
    "read_prompts",
]
