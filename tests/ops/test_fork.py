"""Every op in a child that was forked after the parent ran it on two threads, which the child does not have."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fgrl import extension

WAYS = {
    "os.fork": """
pid = os.fork()
if pid == 0:
    use_every_op()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
""",
    "multiprocessing": """
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=use_every_op)
child.start()
child.join()
assert child.exitcode == 0
""",
    "DataLoader": """
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        use_every_op()
        return index

assert len(list(torch.utils.data.DataLoader(Data(), num_workers=1, multiprocessing_context="fork"))) == 1
""",
    "datasets.map": """
import datasets
def run(row):
    use_every_op()
    return {"x": 1}

rows = datasets.Dataset.from_list([{"x": 0}] * 2)
assert rows.map(run, num_proc=2, load_from_cache_file=False)["x"] == [1, 1]
""",
}
# Sizes are such that each op is worth two threads.
OPS = """
import os, torch, fgrl
from fgrl.ops import PPOLossConfig

torch.set_num_threads(2)
torch.manual_seed(0)
tokens = torch.randint(50, (2, 64 * 1024))
bounds = torch.arange(0, 64 * 1024 + 1, 256)
x, y, z = (torch.randn(32, 2048) for _ in range(3))
hidden, weight = torch.randn(64, 64, requires_grad=True), torch.randn(8192, 64, requires_grad=True)
states, targets = torch.randn(2048, 256, requires_grad=True), torch.randint(8192, (64,))

def use_every_op():
    fgrl.align_edits((tokens[0], bounds), (tokens[1], bounds))
    fgrl.ops.gae(x, y)
    result = fgrl.ops.token_advantages(x, y, x, y)
    fgrl.ops.whiten(result.advantages, torch.ones_like(x, dtype=torch.int64), result.moments)
    leaf = x.clone().requires_grad_()
    for aggregation in ("token-mean", "seq-mean-token-mean"):
        fgrl.ops.ppo_loss(leaf, y, z, config=PPOLossConfig(aggregation=aggregation)).loss.backward()
        fgrl.ops.value_loss(leaf, y, z, aggregation=aggregation).loss.backward()
    fgrl.ops.edit_preference_loss(leaf, leaf, y > 0, z > 0)[0].backward()
    fgrl.ops.token_reward_head(states, weight[0, :1].expand(256)).sum().backward()
    fgrl.ops.linear_logprobs(hidden, weight, targets).sum().backward()
    fgrl.ops.linear_ppo_loss(hidden, weight, targets, None, x[0, :64]).loss.backward()

use_every_op()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(extension.interprets_kernels(), reason="interpreted kernels have no threads")
@pytest.mark.parametrize("way", WAYS)
def test_a_forked_child_computes_every_op(way: str) -> None:
    """A child that waits for threads never ends; how fast one ends that does not is not asked."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    if way == "datasets.map":
        pytest.importorskip("datasets")
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", OPS + WAYS[way]],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = child.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        raise AssertionError("the child hangs") from None
    assert child.returncode == 0, errors
