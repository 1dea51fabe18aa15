"""TRL: token-level rewards in GRPO, and log-probabilities without logits.

    from fgrl.integrations.trl import FineGrainedGRPOTrainer   # instead of trl.GRPOTrainer
    from fgrl.integrations.trl import patch_logprobs           # only the log-probabilities, in TRL's own trainers

Tested with TRL 1.16.0.
"""

from fgrl.integrations._host import require_version

SUPPORTED = "==1.16.*"

require_version("trl", SUPPORTED)

from fgrl.integrations.trl.grpo import FineGrainedGRPOTrainer  # noqa: E402
from fgrl.integrations.trl.logprobs import patch_logprobs  # noqa: E402

__all__ = ["SUPPORTED", "FineGrainedGRPOTrainer", "patch_logprobs"]
