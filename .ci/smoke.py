"""Uses an installed fgrl as a newcomer would, with neither triton nor transformers. Argument: the backend to expect."""

import importlib.util
import sys
from pathlib import Path

for absent in ("triton", "transformers"):
    sys.modules[absent] = None  # type: ignore[assignment]  # importing it now raises ModuleNotFoundError

import torch  # noqa: E402

import fgrl  # noqa: E402
from fgrl import backend, extension  # noqa: E402

expected = sys.argv[1]
home = Path(fgrl.__file__).parent
assert (home / "py.typed").exists()
assert importlib.util.find_spec("kernels") is None, "a top-level package called kernels was installed"
assert Path(fgrl.kernels.__file__).parent == home / "kernels"

chosen = backend.resolve("align_edits", torch.device("cpu"))
assert chosen == expected, f"align_edits runs on {chosen}, not {expected}: {extension.why_not()}"
alignment = fgrl.align_edits([[1, 2, 3, 4]], [[1, 9, 4]])
assert alignment.distance.tolist() == [2]
assert alignment.original_ops.tolist() == [0, 1, 2, 0]

gae = fgrl.ops.gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]]), gamma=1.0, lam=1.0)
torch.testing.assert_close(gae.advantages, torch.tensor([[0.5, 0.75]]))
print(f"fgrl {fgrl.__version__} with torch {torch.__version__} works; align_edits runs on {chosen}")
