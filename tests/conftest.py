"""Fixtures for all tests: seeds, poisoned memory, one thread; and a tiny tokenizer and tiny random-weight models."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import interpreter
import numpy as np
import pytest
import torch

from fgrl.extension import interprets_kernels

try:
    from hypothesis import HealthCheck, settings
except ImportError:
    pass
else:  # no property depends on how fast the machine is
    settings.register_profile("fgrl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("fgrl")

TEXT = (
    "the a cat dog sat ran on under mat tree and or big small red green quickly slowly who what where is it was "
    "capital of France Paris London sky blue teh caat dgo sattt runn matt"
)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny models are slower on many threads, and results then do not depend on how many there are."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Each test draws the same numbers whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fresh memory (`torch.empty` and its relatives, from Python and from C++) holds NaN, or the largest integer.

    PyTorch does this in its deterministic mode, so an op that reads what it never wrote cannot pass by luck.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def adapted_interpreter() -> None:
    if interprets_kernels():
        interpreter.adapt()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer like GPT-2's with 400 tokens, a chat template, and any text as input."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant {% endif %}",
    )


@pytest.fixture
def tiny_causal_lm(tiny_tokenizer: Any) -> Any:
    """A Llama of two layers and width 32 with random weights, the same in every test."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_checkpoint(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """Folder with the tiny causal LM and its tokenizer."""
    folder = tmp_path / "tiny-lm"
    tiny_causal_lm.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of edits by people (post-edits, corrected summaries), which `FGRL_REAL_DATA` names."""
    folder = os.environ.get("FGRL_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FGRL_REAL_DATA names no folder")
    return Path(folder)
