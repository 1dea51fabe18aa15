"""ExPO on checkpoints: bits, dtypes, shards, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import fgrl
from fgrl.cli import main
from fgrl.preference import expo

Tensors = dict[str, torch.Tensor]


def checkpoint(folder: Path, tensors: Tensors, config: dict[str, Any] | None = None) -> Path:
    """A folder with one safetensors file."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "note": folder.name})
    (folder / "config.json").write_text(json.dumps(config or {}), encoding="utf-8")
    return folder


def model(seed: int, dtype: torch.dtype = torch.float32, **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, **options
    )
    return LlamaForCausalLM(config).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block", [7, 1 << 22], ids=["many blocks", "one block"])
def test_it_is_the_formula_in_float64_rounded_once(
    dtype: torch.dtype, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expo, "_BLOCK", block)
    torch.manual_seed(0)
    aligned, sft = ({"a": torch.randn(5, 7).to(dtype), "b": torch.randn(()).to(dtype)} for _ in range(2))
    checkpoint(tmp_path / "aligned", aligned)
    checkpoint(tmp_path / "sft", sft)
    result = fgrl.extrapolate(tmp_path / "aligned", tmp_path / "sft", tmp_path / "out", alpha=0.37)
    assert result.tensors == 2
    assert result.parameters == 36
    for name, found in load_file(tmp_path / "out" / "model.safetensors").items():
        exact = aligned[name].double() + 0.37 * (aligned[name].double() - sft[name].double())
        assert found.dtype == dtype
        eps = torch.finfo(dtype).eps + 2 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        torch.testing.assert_close(found.double(), exact, rtol=eps, atol=eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_alpha_0_keeps_every_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    every_16_bits = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16).float()
    values = every_16_bits[every_16_bits.isfinite()].to(dtype)  # -0.0 and subnormal numbers among them
    values = values[values.isfinite()]
    checkpoint(tmp_path / "aligned", {"a": values})
    checkpoint(tmp_path / "sft", {"a": torch.randn(values.shape)})
    fgrl.extrapolate(tmp_path / "aligned", tmp_path / "sft", tmp_path / "out", alpha=0.0)
    written, before = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "aligned"))
    assert written == before


def test_shards_index_metadata_and_configuration_are_those_of_aligned(tmp_path: Path) -> None:
    model(0, torch.bfloat16).save_pretrained(tmp_path / "aligned", max_shard_size="8KB")
    model(1).save_pretrained(tmp_path / "sft")
    assert len(list((tmp_path / "aligned").glob("*.safetensors"))) > 1
    (tmp_path / "aligned" / "optimizer.pt").write_bytes(b"large")
    fgrl.extrapolate(tmp_path / "aligned", tmp_path / "sft", tmp_path / "out", alpha=0.5)
    names = {path.name for path in (tmp_path / "aligned").iterdir()} - {"optimizer.pt"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for shard in (tmp_path / "aligned").glob("*.safetensors"):
        with safe_open(shard, "pt") as before, safe_open(tmp_path / "out" / shard.name, "pt") as after:
            assert before.metadata() == after.metadata()
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert loaded.dtype == torch.bfloat16
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    a, s = model(0, torch.bfloat16), model(1)
    for name, parameter in loaded.named_parameters():
        expected = a.get_parameter(name).float() + 0.5 * (a.get_parameter(name).float() - s.get_parameter(name))
        torch.testing.assert_close(parameter.data, expected.bfloat16())


def test_whole_numbers_must_be_equal_and_are_copied(tmp_path: Path) -> None:
    counts = torch.tensor([3, 2**40])
    checkpoint(tmp_path / "aligned", {"a": torch.ones(2), "counts": counts})
    checkpoint(tmp_path / "sft", {"a": torch.zeros(2), "counts": counts})
    fgrl.extrapolate(tmp_path / "aligned", tmp_path / "sft", tmp_path / "out", alpha=1.0)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written["a"].tolist() == [2.0, 2.0]
    assert torch.equal(written["counts"], counts)


def test_equal_models_are_said_to_be_equal(tmp_path: Path) -> None:
    checkpoint(tmp_path / "aligned", {"a": torch.ones(2)})
    checkpoint(tmp_path / "sft", {"a": torch.ones(2)})
    with pytest.warns(UserWarning, match="hold the same weights"):
        fgrl.extrapolate(tmp_path / "aligned", tmp_path / "sft", tmp_path / "out", alpha=0.3)


ONES = {"a": torch.ones(2)}


@pytest.mark.parametrize(
    ("aligned", "sft", "message"),
    [
        (ONES, {"a": torch.ones(3)}, r"tensor a has the shape \[2\] in aligned and \[3\]"),
        (ONES, {**ONES, "lm_head.weight": torch.ones(1)}, r"sft alone holds 1 tensors \(lm_head.weight\)"),
        ({**ONES, "b": torch.ones(1)}, ONES, r"aligned alone holds 1 tensors \(b\)"),
        ({"a": torch.tensor([1, 2])}, {"a": torch.tensor([1, 3])}, "tensor a is of whole numbers and differs"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)},) * 2 + ("tensor a has the dtype F8_E4M3",),
        ({"a": torch.ones(2)}, {"a": torch.ones(2).to(torch.float8_e4m3fn)}, "tensor a has the dtype F32 in aligned"),
        ({"a": torch.tensor([6e4]).half()}, {"a": torch.zeros(1)}, "tensor a is not finite after the step"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_writes_nothing(
    aligned: Tensors, sft: Tensors, message: str, tmp_path: Path
) -> None:
    checkpoint(tmp_path / "aligned", aligned)
    checkpoint(tmp_path / "sft", sft)
    with pytest.raises(ValueError, match=message):
        fgrl.extrapolate(tmp_path / "aligned", tmp_path / "sft", tmp_path / "out", alpha=0.3)
    assert sorted(os.listdir(tmp_path)) == ["aligned", "sft"]


def test_folders_that_are_no_plain_checkpoints(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "good", ONES)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    truncated = checkpoint(tmp_path / "truncated", ONES)
    data = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(data[:-4])
    quantized = checkpoint(tmp_path / "quantized", ONES, {"quantization_config": {"quant_method": "gptq"}})
    lost_shard = tmp_path / "lost"
    lost_shard.mkdir()
    (lost_shard / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}', encoding="utf-8")
    for folder, message in (
        (tmp_path / "nowhere", "must be the folder of a checkpoint"),
        (adapter, "holds adapters without their model"),
        (truncated, "it must be a safetensors file"),
        (quantized, "a quantized model"),
        (lost_shard, "it must be a safetensors file"),
    ):
        with pytest.raises(ValueError, match=message):
            fgrl.extrapolate(good, folder, tmp_path / "out", alpha=0.3)
    with pytest.raises(ValueError, match="alpha is nan"):
        fgrl.extrapolate(good, good, tmp_path / "out", alpha=float("nan"))
    with pytest.raises(FileExistsError, match="must be a new folder"):
        fgrl.extrapolate(good, good, good, alpha=0.3)


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    checkpoint(tmp_path / "aligned", {"a": torch.ones(3)})
    checkpoint(tmp_path / "sft", {"a": torch.zeros(3)})
    folders = [str(tmp_path / name) for name in ("aligned", "sft")]
    assert main(["extrapolate", *folders, "--alpha", "0.5", "--out", str(tmp_path / "out")]) == 0
    assert "3 parameters moved by 0.5 of their norm" in capsys.readouterr().err
    assert load_file(tmp_path / "out" / "model.safetensors")["a"].tolist() == [1.5] * 3
