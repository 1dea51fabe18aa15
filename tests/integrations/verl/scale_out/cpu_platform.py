"""verl on a CPU through its own extension points: a platform, its FSDP2 engines on it, and a Hugging Face rollout.

Every process of the run imports this module (`VERL_USE_EXTERNAL_MODULES`). What verl 0.9.1 has no extension point for
on a CPU is replaced at the end.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


def nothing(*_: Any, **__: Any) -> None:
    pass


def zero(*_: Any, **__: Any) -> int:
    return 0


DEVICE_MODULE = SimpleNamespace(
    **dict.fromkeys(("empty_cache", "synchronize", "set_device", "manual_seed", "manual_seed_all"), nothing),
    **dict.fromkeys(("reset_peak_memory_stats", "ipc_collect", "current_stream"), nothing),
    **dict.fromkeys(("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"), zero),
    current_device=zero,
    mem_get_info=lambda *_: (1 << 34, 1 << 34),
    is_available=lambda: False,
    device_count=lambda: 1,
    get_device_name=lambda *_: "cpu",
    get_rng_state=torch.get_rng_state,
    set_rng_state=torch.set_rng_state,
)


@PlatformRegistry.register(platform="cpu")
class CPUPlatform(PlatformBase):
    device_name = vendor_name = "cpu"
    device_module = DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_id: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        return "GPU"  # what the placement groups count; ray.init names two that do not exist

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    @contextmanager
    def nvtx_range(self, msg: str) -> Any:
        yield

    set_device = synchronize = set_allocator_settings = empty_cache = nothing
    profiler_start = profiler_stop = cudart = nothing


# These ask for the platform when they are imported.
import verl.utils.distributed  # noqa: E402
import verl.utils.model  # noqa: E402
from verl.workers.engine.base import EngineRegistry  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead  # noqa: E402
from verl.workers.rollout import base, replica  # noqa: E402


def load_value_model(local_path: str, torch_dtype: torch.dtype, model_config: Any, trust_remote_code: bool) -> Any:
    """A critic whose new head is the same in every run, and that needs no flash-attention."""
    from transformers import AutoModelForTokenClassification

    torch.manual_seed(0)
    return AutoModelForTokenClassification.from_pretrained(
        local_path, dtype=torch_dtype, config=model_config, attn_implementation="sdpa"
    )


def load_replica() -> Any:
    from cpu_rollout import Replica

    return Replica


EngineRegistry.register("language_model", ["fsdp", "fsdp2"], device=["cpu"])(FSDPEngineWithLMHead)
EngineRegistry.register("value_model", ["fsdp", "fsdp2"], device=["cpu"])(FSDPEngineWithValueHead)
base._ROLLOUT_REGISTRY[("hf", "async")] = "cpu_rollout.Adapter"
replica.RolloutReplicaRegistry.register("hf", load_replica)
# verl asks for "cpu:gloo,cpu:gloo", which torch refuses, and for a critic with flash-attention 2.
verl.utils.distributed.initialize_global_process_group_ray = functools.partial(
    verl.utils.distributed.initialize_global_process_group_ray, backend="cpu:gloo"
)
verl.utils.model.load_valuehead_model = load_value_model
