"""`import fgrl` needs torch and nothing else, and the public names are those of the design."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fgrl

REPOSITORY = Path(__file__).resolve().parents[1]

# Parameters as `inspect` prints them: names, kinds and defaults, without annotations.
SIGNATURES = {
    "align_edits": "(original, edited, *, num_threads=None)",
    "token_reward_head": "(hidden, weight, bias=None, *, norm_weight=None, norm_eps=1e-06)",
    "edit_preference_loss": "(chosen_rewards, rejected_rewards, chosen_edits, rejected_edits, *, chosen_mask=None, "
    "rejected_mask=None, reduction='sum', unchanged_weight=0.0, margin=0.0)",
    "gae": "(rewards, values, mask=None, *, gamma=1.0, lam=0.95, bootstrap=None, cu_seqlens=None)",
    "token_advantages": "(token_rewards, values, logprobs, ref_logprobs, mask=None, *, sequence_rewards=None, "
    "reward_scale=1.0, reward_clip=None, kl_coef=0.0, kl_estimator='k1', gamma=1.0, lam=0.95, bootstrap=None, "
    "cu_seqlens=None)",
    "group_advantages": "(rewards, groups, mask=None, *, token_rewards=None, baseline='mean', scale='group', "
    "gamma=1.0, segment_ids=None, min_temperature=None, cu_seqlens=None)",
    "whiten": "(advantages, mask, moments=None, *, group=None)",
    "ppo_loss": "(logprobs, old_logprobs, advantages, mask=None, *, ref_logprobs=None, entropy=None, "
    "rollout_logprobs=None, normalizer=None, cu_seqlens=None, config=PPOLossConfig())",
    "value_loss": "(values, old_values, returns, mask=None, *, clip=0.2, normalizer=None, cu_seqlens=None, "
    "aggregation='token-mean')",
    "linear_logprobs": "(hidden, weight, targets, *, bias=None, temperature=1.0, softcap=None, mask=None, "
    "return_entropy=False, support_ids=None, process_group=None, chunk_tokens=None)",
    "linear_ppo_loss": "(hidden, weight, targets, old_logprobs, advantages, mask=None, *, bias=None, temperature=1.0, "
    "softcap=None, ref_logprobs=None, rollout_logprobs=None, normalizer=None, cu_seqlens=None, "
    "config=PPOLossConfig(), process_group=None, chunk_tokens=None)",
    "linear_kl": "(hidden, weight, teacher_hidden, teacher_weight, mask=None, *, divergence='reverse', beta=0.5, "
    "bias=None, teacher_bias=None, temperature=1.0, softcap=None, teacher_softcap=None, normalizer=None, "
    "cu_seqlens=None, aggregation='token-mean', process_group=None, chunk_tokens=None)",
    "linear_topk_kl": "(hidden, weight, teacher_ids, teacher_logprobs, mask=None, *, divergence='reverse', beta=0.5, "
    "tail='bucket', bias=None, temperature=1.0, softcap=None, normalizer=None, cu_seqlens=None, "
    "aggregation='token-mean', process_group=None, chunk_tokens=None)",
}

RESULT_FIELDS = {
    "GAE": ("advantages", "returns"),
    "TokenAdvantages": ("advantages", "returns", "kl", "moments"),
    "EditPreferenceLoss": ("loss", "margins"),
    "PPOLoss": ("loss", "stats"),
    "ValueLoss": ("loss", "stats"),
    "LinearKL": ("loss", "kl"),
    "LinearPPOLoss": ("loss", "stats", "logprobs"),
}

# What an import must not bring along, and what blocks it: absent packages, as in an environment with torch alone.
HEAVY = ("transformers", "triton", "datasets", "accelerate", "peft", "safetensors", "pandas", "pyarrow", "matplotlib")

RUN = """
import importlib.abc, json, subprocess, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())

def no_program(*args, **kwargs):
    raise AssertionError(f"a program was started: {{args}}")

import torch
before = set(sys.modules)
subprocess.Popen.__init__ = no_program
{body}
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""


def python(body: str, blocked: tuple[str, ...] = ()) -> list[str]:
    """Run `body` in a fresh interpreter, without a compiler; returns the packages it imported in addition to torch."""
    result = subprocess.run(
        [sys.executable, "-c", RUN.format(blocked=blocked, body=body)],
        capture_output=True,
        text=True,
        env={"PATH": "", "CC": "none", "CXX": "none", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return list(json.loads(result.stdout.splitlines()[-1]))


def test_import_brings_nothing_but_torch() -> None:
    imported = python("import fgrl; fgrl.ops; fgrl.reference; fgrl.use_backend; fgrl.EditAlignment")
    assert not set(imported) & set(HEAVY)
    outside = {name for name in imported if name not in sys.stdlib_module_names and name not in ("fgrl", "torch")}
    assert outside <= {"numpy"}, outside


def test_an_op_runs_where_only_torch_is_installed() -> None:
    python(
        "import fgrl\n"
        "fgrl.ops.gae(torch.ones(1, 2), torch.ones(1, 2))\n"
        "fgrl.align_edits([[1, 2]], [[1, 3]])\n"
        "fgrl.ops.linear_ppo_loss(torch.ones(2, 3), torch.ones(5, 3), torch.zeros(2).long(), None, torch.ones(2))",
        blocked=HEAVY,
    )


def test_what_is_missing_is_named_when_it_is_needed() -> None:
    python(
        "import fgrl\n"
        "try:\n"
        "    fgrl.TokenRewardModel\n"
        "except ImportError as error:\n"
        "    assert 'transformers' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('a model without transformers')",
        blocked=HEAVY,
    )


def bare(function: Any) -> str:
    """The signature without annotations."""
    signature = inspect.signature(function)
    plain = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    text = str(signature.replace(parameters=plain, return_annotation=signature.empty))
    return text.replace(repr(fgrl.PPOLossConfig()), "PPOLossConfig()")


@pytest.mark.parametrize("module", [fgrl.ops, fgrl.reference], ids=lambda module: module.__name__)
@pytest.mark.parametrize("op", SIGNATURES)
def test_signatures(op: str, module: Any) -> None:
    assert bare(getattr(module, op)) == SIGNATURES[op]
    assert op in module.__all__


@pytest.mark.parametrize("op", SIGNATURES)
def test_ops_and_references_are_typed_alike(op: str) -> None:
    public, reference = (inspect.signature(getattr(module, op)) for module in (fgrl.ops, fgrl.reference))
    assert public == reference
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in public.parameters.values())
    assert public.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("op", SIGNATURES)
def test_ops_are_documented(op: str) -> None:
    text = inspect.getdoc(getattr(fgrl.ops, op)) or ""
    for part in ("Args:", "Returns:", "Raises:", "Example:", ">>> "):
        assert part in text, part
    for name in inspect.signature(getattr(fgrl.ops, op)).parameters:
        assert f"{name}:" in text, name


@pytest.mark.parametrize("name", RESULT_FIELDS)
def test_results_are_named_tuples(name: str) -> None:
    assert getattr(fgrl.ops, name)._fields == RESULT_FIELDS[name]


def test_options_of_the_ppo_loss() -> None:
    assert vars(fgrl.ops.PPOLossConfig()) == {
        "clip_low": 0.2,
        "clip_high": 0.2,
        "dual_clip": None,
        "kl_coef": 0.0,
        "kl_estimator": "k3+",
        "entropy_coef": 0.0,
        "importance_cap": None,
        "aggregation": "token-mean",
        "loss": "clip",
        "tau_positive": 1.0,
        "tau_negative": 1.05,
        "importance_floor": None,
        "importance_level": "token",
        "importance_mode": "truncate",
    }
    with pytest.raises(AttributeError):
        fgrl.ops.PPOLossConfig().clip_low = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(fgrl.__all__))
def test_every_public_name_exists(name: str) -> None:
    if name in ("TokenRewardModel", "ValueModel") or name.endswith(("Trainer", "Config")):
        pytest.importorskip("transformers")
    assert getattr(fgrl, name) is not None
    assert name in dir(fgrl)


def test_the_names_of_the_design_are_public() -> None:
    names = {"align_edits", "checks", "ops", "reference", "use_backend", "EditOp", "EditAlignment", "TokenRewardModel"}
    names |= {"TokenRewardTrainer", "TokenRewardConfig", "FineGrainedPPOTrainer", "FineGrainedPPOConfig"}
    assert names <= set(fgrl.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        fgrl.no_such_name  # noqa: B018


def test_the_package_is_typed() -> None:
    assert (Path(fgrl.__file__).parent / "py.typed").exists()
