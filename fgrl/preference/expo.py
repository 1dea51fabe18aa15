"""ExPO: go further in the direction that alignment took, without training.

    theta = theta_aligned + alpha * (theta_aligned - theta_sft)

Zheng et al., "Model Extrapolation Expedites Alignment" (arXiv 2404.16792), eq. 2; alpha of 0.3 to 0.5 there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from fgrl.data.output import open_output_folder

_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_COPIED = (".json", ".jinja", ".md", ".model", ".py", ".tiktoken", ".txt")
_BLOCK = 1 << 22  # elements read at a time: memory does not depend on the size of a tensor


class Extrapolation(NamedTuple):
    """What was done: tensors and parameters written, and `||alpha (aligned - sft)|| / ||aligned||` over all weights."""

    tensors: int
    parameters: int
    relative_update: float


class _Stored(NamedTuple):
    """A tensor in a safetensors file: its bytes are `[begin, end)`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def extrapolate(
    aligned: str | os.PathLike[str], sft: str | os.PathLike[str], out: str | os.PathLike[str], *, alpha: float
) -> Extrapolation:
    """Write `theta_aligned + alpha * (theta_aligned - theta_sft)` as a checkpoint.

    The output has the shards, index, dtypes, metadata, configuration and tokenizer of `aligned`; the arithmetic is
    fp32, fp64 for fp64 weights. Blocks of a few million weights are in memory at a time, whatever the size of the
    model. A weight that is equal in both keeps its bits, and so does every weight with `alpha=0`. Tensors that are not
    floating point must be equal in both. The folder appears when it is complete, or not at all.

    Args:
        aligned: folder of a Hugging Face checkpoint in safetensors: the model after preference training.
        sft: likewise, the model that training started from. Shards and dtype may differ.
        out: folder to write, which must not exist yet, or be empty.
        alpha: how far to go on, in units of the way already taken; 0 gives `aligned`, -1 the weights of `sft`.

    Raises:
        ValueError: names or shapes differ (tied weights on one side only included), a folder has no safetensors
            weights, or quantized ones, or a weight overflows its dtype.
        FileExistsError: `out` exists.

    Example:
        >>> import fgrl
        >>> fgrl.extrapolate("policy", "sft-model", "policy-expo", alpha=0.3)  # doctest: +SKIP
    """
    source, target = Path(aligned), Path(out)
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}; it must be a finite number")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"out is {os.fspath(out)!r}, which exists; it must be a new folder")
    weights, start = _tensors("aligned", source), _tensors("sft", Path(sft))
    _check_same(weights, start)
    moved = total = 0.0
    with open_output_folder(target) as folder:
        for path in source.iterdir():
            if path.is_file() and path.suffix in _COPIED and path.name != "trainer_state.json":
                shutil.copyfile(path, folder / path.name)
        for file in sorted({tensor.file for tensor in weights.values()}):
            own = {name: tensor for name, tensor in weights.items() if tensor.file == file}
            squares = _write_shard(file, folder / file.name, own, start, alpha)
            moved, total = moved + squares[0], total + squares[1]
    if alpha != 0 and moved == 0:
        warnings.warn("aligned and sft hold the same weights; the output is a copy of them", stacklevel=2)
    return Extrapolation(
        len(weights),
        sum(math.prod(tensor.shape) for tensor in weights.values()),
        math.sqrt(moved / total) if total else 0.0,
    )


def _write_shard(
    source: Path, target: Path, tensors: dict[str, _Stored], start: dict[str, _Stored], alpha: float
) -> tuple[float, float]:
    """Write one shard in the layout of `source`; returns the squared norms of the update and of the weights."""
    moved = total = 0.0
    with open(source, "rb") as read, open(target, "wb") as write:
        write.write(read.read(min(tensor.begin for tensor in tensors.values())))  # the header, metadata included
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
            with open(start[name].file, "rb") as other:
                for here, there in _blocks(read, tensor, other, start[name]):
                    result, update = _moved(name, here, there, alpha)
                    write.write(result.view(torch.uint8).numpy().data)
                    moved += float(update.double().square().sum())
                    total += float(here.double().square().sum())
        write.flush()
        os.fsync(write.fileno())
    return moved, total


def _moved(name: str, aligned: Tensor, sft: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """A block after the step, in its dtype, and the step."""
    if not aligned.is_floating_point():
        if not torch.equal(aligned, sft):
            raise ValueError(f"tensor {name} is of whole numbers and differs between aligned and sft; it must be equal")
        return aligned, aligned.new_zeros((), dtype=torch.float32)
    dtype = torch.promote_types(aligned.dtype, torch.float32)
    update = alpha * (aligned.to(dtype) - sft.to(dtype))
    result = torch.where(update == 0, aligned, (aligned.to(dtype) + update).to(aligned.dtype))
    if not bool(result.isfinite().all()):
        raise ValueError(f"tensor {name} is not finite after the step with alpha {alpha}; it must fit {aligned.dtype}")
    return result, update


def _blocks(read: BinaryIO, tensor: _Stored, other: BinaryIO, start: _Stored) -> Iterator[tuple[Tensor, Tensor]]:
    """The same elements of both tensors, `_BLOCK` at a time."""
    count = math.prod(tensor.shape)
    read.seek(tensor.begin)
    other.seek(start.begin)
    for begin in range(0, count, _BLOCK):
        size = min(_BLOCK, count - begin)
        yield _read(read, tensor, size, count), _read(other, start, size, count)


def _read(file: BinaryIO, tensor: _Stored, size: int, count: int) -> Tensor:
    """The next `size` of `count` elements; bytes where they are not floating point."""
    dtype = _FLOATS.get(tensor.dtype, torch.uint8)
    data = bytearray(size * ((tensor.end - tensor.begin) // count))
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise ValueError(f"{tensor.file} ends early; it must hold the tensors that its header names")
    return torch.frombuffer(data, dtype=dtype)


def _tensors(argument: str, folder: Path) -> dict[str, _Stored]:
    """Every tensor of a checkpoint by name, from the headers of its files."""
    if not folder.is_dir():
        raise ValueError(f"{argument} is {os.fspath(folder)!r}; it must be the folder of a checkpoint")
    if "quantization_config" in _json(folder / "config.json"):
        raise ValueError(f"{argument} is {os.fspath(folder)!r}, a quantized model; it must have plain weights")
    index = _json(folder / _INDEX)
    names = set(index["weight_map"].values()) if index else {_WEIGHTS} if (folder / _WEIGHTS).exists() else set()
    if not names:
        kind = "adapters without their model" if (folder / "adapter_config.json").exists() else "no safetensors"
        raise ValueError(
            f"{argument} is {os.fspath(folder)!r}, which holds {kind}; it must hold {_WEIGHTS} or {_INDEX}"
        )
    found: dict[str, _Stored] = {}
    for name in sorted(names):
        found |= _header(folder / name)
    if index and set(index["weight_map"]) != set(found):
        raise ValueError(f"{folder / _INDEX} names other tensors than its shards hold; it must be of the same model")
    return found


def _header(path: Path) -> dict[str, _Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):  # checks the header against the file
            pass
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it must be a safetensors file") from error
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        name: _Stored(path, entry["dtype"], tuple(entry["shape"]), *(start + at for at in entry["data_offsets"]))
        for name, entry in header.items()
    }


def _check_same(aligned: dict[str, _Stored], sft: dict[str, _Stored]) -> None:
    for side, names in (("aligned", aligned.keys() - sft.keys()), ("sft", sft.keys() - aligned.keys())):
        if names:
            raise ValueError(
                f"{side} alone holds {len(names)} tensors ({', '.join(sorted(names)[:3])}); both must be of one "
                "architecture, with the same weights tied and adapters merged"
            )
    for name, tensor in aligned.items():
        if tensor.shape != sft[name].shape:
            raise ValueError(
                f"tensor {name} has the shape {list(tensor.shape)} in aligned and {list(sft[name].shape)} in sft; "
                "they must be equal"
            )
        is_float = (tensor.dtype in _FLOATS, sft[name].dtype in _FLOATS)
        if is_float != (True, True) and tensor.dtype != sft[name].dtype:
            raise ValueError(
                f"tensor {name} has the dtype {tensor.dtype} in aligned and {sft[name].dtype} in sft; both must be "
                "floating point of 16 bits or more, or the same"
            )
        if tensor.dtype.startswith("F8"):
            raise ValueError(f"tensor {name} has the dtype {tensor.dtype}; it must be of 16 bits or more")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); it must be") from error
    return content if isinstance(content, dict) else {}
