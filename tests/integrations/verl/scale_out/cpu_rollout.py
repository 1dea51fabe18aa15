"""A rollout engine for verl that samples with `transformers`, the same tokens for the same weights in every run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput


class Server:
    def __init__(self, path: str, response_length: int) -> None:
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.length, self.global_steps, self.updates = response_length, None, 0

    def update_weights(self, state: dict[str, Tensor], global_steps: int | None) -> None:
        self.model.load_state_dict(state, strict=False)
        self.global_steps, self.updates = global_steps, self.updates + 1

    @torch.no_grad()
    def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> Any:
        ids = torch.tensor([list(prompt_ids)])
        torch.manual_seed(hash(tuple(prompt_ids)) % 2**31 + self.updates)
        found = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=self.length,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = found.sequences[0, ids.shape[1] :]
        logprobs = torch.stack(found.logits, 1)[0].log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        return TokenOutput(
            token_ids=tokens.tolist(),
            log_probs=logprobs.tolist(),
            stop_reason="completed",
            extra_fields={"global_steps": self.global_steps},
        )

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = _nothing
    abort_all_requests = resume_generation = _nothing


def server_name(rank: int) -> str:
    return f"hf_server_{rank}"


class Replica(RolloutReplica):
    async def launch_servers(self) -> None:
        config = self.model_config
        path = config.path if hasattr(config, "path") else config["path"]
        name = server_name(self.replica_rank)
        server = ray.remote(Server).options(name=name, num_cpus=1).remote(path, self.config.response_length)
        self.servers, self._server_handle, self._server_address = [server], server, name

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        pass


class Adapter(BaseRollout):
    """Brings the actor's weights to the server of this rank; those of rank 0 stay in a file for the test."""

    async def resume(self, tags: list[str]) -> None:
        pass

    async def release(self) -> None:
        pass

    async def update_weights(self, weights: Iterable[tuple[str, Tensor]], **kwargs: Any) -> None:
        state = {name: weight.detach().cpu().float() for name, weight in weights}
        rank, steps = torch.distributed.get_rank(), kwargs.get("global_steps")
        if rank == 0:
            torch.save(state, Path(os.environ["SCALE_OUT_FOLDER"]) / "weights.pt")
        await ray.get_actor(server_name(rank)).update_weights.remote(state, steps)
