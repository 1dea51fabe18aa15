"""How many rows of logits the `linear_*` ops have at once."""

from __future__ import annotations

import os
from functools import cache

import torch

_MIB = 2**20
_CPU_MIB = 64  # larger chunks gain nothing on a CPU
_GPU_SHARE = 32  # of the memory of a GPU
_GPU_ROWS = 128  # tiles of matrix products on a GPU have 64, 128 or 256 rows


def budget_bytes(device: torch.device) -> int:
    """Memory of a chunk: `FGRL_CHUNK_MB` (environment), else 64 MiB on the CPU and 1/32 of the memory of a GPU.

    Of the memory that the GPU has, not of what is free: chunks decide in which order sums are rounded, and the same
    input must give the same bits.

    Raises:
        ValueError: `FGRL_CHUNK_MB` is not a number greater than 0.
    """
    setting = os.environ.get("FGRL_CHUNK_MB")
    if setting is None:
        return (
            _CPU_MIB * _MIB if device.type in ("cpu", "meta") else max(_CPU_MIB * _MIB, _memory(device) // _GPU_SHARE)
        )
    try:
        budget = float(setting) * _MIB
    except ValueError:
        budget = 0
    if not budget > 0:
        raise ValueError(f"FGRL_CHUNK_MB is {setting!r}; it must be a number of MiB greater than 0")
    return int(min(budget, 2**62))


def rows_at_once(count: int, vocabulary: int, bytes_a_logit: int, budget: int, device_type: str) -> int:
    """Rows of a chunk, of `count` rows in all, so that their logits and gradients by them fit into `budget` bytes.

    On a GPU a multiple of 128 that does not depend on `count`, so that every call multiplies the same shapes and gets
    the same buffer from the allocator; 128 where fewer would fit. On a CPU the fewest chunks, of equal size.

    Arithmetic intensity. The product of the weight gradient, `[V, R] x [R, D]` in 2-byte operands with fp32 sums, does
    `2 V R D` FLOP. It reads `2 V R` bytes of gradients by logits, and reads and writes the `4 V D` bytes of the sums:

        intensity = 2 V R D / (2 V R + 8 V D) = R D / (R + 4 D)   FLOP a byte

    An H100 does 989 TFLOP/s and moves 3.35 TB/s, so a product needs 295 FLOP a byte to be bound by arithmetic. A chunk
    of 1 GiB at `V = 151936` has 1152 rows of 6 bytes a logit, with `D = 4096` 269 FLOP a byte: bound by memory. 1/32
    of its 80 GiB has 2944 rows, 624 FLOP a byte.
    """
    rows = budget // (vocabulary * bytes_a_logit)
    if device_type not in ("cpu", "meta"):
        return max(_GPU_ROWS, rows // _GPU_ROWS * _GPU_ROWS)
    return -(-count // max(1, -(-count // max(1, rows))))


@cache
def _memory(device: torch.device) -> int:
    """Bytes of memory of a GPU; 0 where PyTorch cannot tell."""
    properties = getattr(getattr(torch, device.type, None), "get_device_properties", None)
    return 0 if properties is None else int(properties(device).total_memory)
