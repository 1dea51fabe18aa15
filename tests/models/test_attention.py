"""`resolve_attention`: what "auto" becomes."""

from __future__ import annotations

import pytest
import torch

import fgrl.models.attention
from fgrl.models import resolve_attention

pytest.importorskip("transformers")


class WithoutFlash:
    _supports_flash_attn = False
    _supports_sdpa = True


class WithoutSDPA:
    _supports_flash_attn = False
    _supports_sdpa = False


@pytest.mark.parametrize(
    ("dtype", "device", "installed", "model_class", "expected"),
    [
        pytest.param(torch.bfloat16, "cuda", True, None, "flash_attention_2", id="bf16-cuda-flash"),
        pytest.param(torch.float16, "cuda:1", True, None, "flash_attention_2", id="fp16-cuda-flash"),
        pytest.param(torch.bfloat16, "cuda", False, None, "sdpa", id="not-installed"),
        pytest.param(torch.float32, "cuda", True, None, "sdpa", id="fp32"),
        pytest.param(None, "cuda", True, None, "sdpa", id="dtype-unknown"),
        pytest.param(torch.bfloat16, "cpu", True, None, "sdpa", id="cpu"),
        pytest.param(torch.bfloat16, "cuda", True, WithoutFlash, "sdpa", id="class-without-flash"),
        pytest.param(torch.bfloat16, "cuda", True, WithoutSDPA, None, id="class-without-sdpa"),
    ],
)
def test_auto(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype | None,
    device: str,
    installed: bool,
    model_class: type | None,
    expected: str | None,
) -> None:
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: installed)
    assert resolve_attention("auto", dtype, device, model_class=model_class) == expected


@pytest.mark.parametrize("name", ["eager", "flash_attention_3", None])
def test_a_name_is_kept(name: str | None) -> None:
    assert resolve_attention(name, torch.bfloat16, "cuda") == name


@pytest.mark.parametrize("has_cuda", [False, True])
def test_device_defaults_to_the_one_there_is(monkeypatch: pytest.MonkeyPatch, has_cuda: bool) -> None:
    monkeypatch.setattr(fgrl.models.attention.torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    assert resolve_attention("auto", torch.bfloat16) == ("flash_attention_2" if has_cuda else "sdpa")
