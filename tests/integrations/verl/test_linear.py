"""The fused head against verl's own, and with a head that FSDP2 shards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import verl.utils.experimental.torch_functional as fused_heads
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import fgrl.integrations.verl as adapter
from fgrl.integrations.verl.linear import FusedLinear

VOCABULARY, WIDTH = 203, 24


def run(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Log-probabilities, entropies and the gradients by hidden states and head."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(*shape, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    ids = torch.randint(VOCABULARY, shape, generator=generator, dtype=torch.int32)
    logprobs, entropy = module.forward(hidden_states=hidden, vocab_weights=weight, input_ids=ids, temperature=0.7)
    (logprobs.float().sum() + 0.3 * entropy.float().square().sum()).backward()
    return logprobs, entropy, hidden.grad, weight.grad


@pytest.mark.parametrize("shape", [(600,), (3, 5)], ids=["packed", "padded"])  # 600: verl's second chunk
def test_agrees_with_verl(shape: tuple[int, ...]) -> None:
    adapter.undo()
    expected = run(fused_heads.FusedLinearForPPO(), shape, torch.float32)
    adapter.apply()
    found = run(fused_heads.FusedLinearForPPO(impl_backend="torch"), shape, torch.float32)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-5)


def test_bf16_is_nearer_to_float64_than_verl() -> None:
    """verl rounds the logits to bf16 before the softmax."""
    adapter.undo()
    theirs = run(fused_heads.FusedLinearForPPO(), (64,), torch.bfloat16)
    adapter.apply()
    mine = run(fused_heads.FusedLinearForPPO(), (64,), torch.bfloat16)
    generator = torch.Generator().manual_seed(5)
    hidden, weight = (torch.randn(size, WIDTH, generator=generator).bfloat16().double() for size in (64, VOCABULARY))
    ids = torch.randint(VOCABULARY, (64,), generator=generator, dtype=torch.int32)
    exact = (hidden @ weight.T / 0.7).log_softmax(-1).gather(1, ids.long()[:, None])[:, 0]
    assert (mine[0] - exact).abs().max() < 1e-5 < (theirs[0] - exact).abs().max()


def test_another_back_end_stays_verls() -> None:
    with pytest.raises(ValueError, match="Unsupported FusedLinearForPPO backend"):
        fused_heads.FusedLinearForPPO(impl_backend="cuda")
    module = FusedLinear(impl_backend="liger")
    assert module.impl_backend == "liger"


class Model(nn.Module):
    """A layer, and a head that is not tied to anything; verl reads its weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.lm_head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, states: Tensor, ids: Tensor) -> Tensor:
        logprobs, entropy = FusedLinear()(self.layer(states).tanh(), self.lm_head.weight, ids)
        return logprobs.sum() - 0.1 * entropy.sum()


def one_process(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Model()
    states, ids = torch.randn(world, 7, WIDTH), torch.randint(VOCABULARY, (world, 7))
    alone = Model()
    alone.load_state_dict(model.state_dict())
    for part in (model.layer, model.lm_head, model):
        fully_shard(part)
    model(states[rank], ids[rank]).backward()
    (alone(states, ids) / world).backward()  # FSDP averages over the processes
    for (name, found), expected in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(found.grad.full_tensor(), expected.grad, rtol=1e-4, atol=1e-5, msg=name)
    dist.destroy_process_group()


def test_gradient_of_a_sharded_head_is_that_of_one_process(tmp_path: Path) -> None:
    mp.spawn(one_process, args=(2, tmp_path), nprocs=2)
