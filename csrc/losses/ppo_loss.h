// The PPO loss and its relatives: loss, statistics and gradient of a block of tokens in one pass. Torch-free.
//
// For each valid token (fgrl/reference/ppo_loss.py), with weight v by its sequence and A its advantage times its
// importance weight:
//
//     x     = clamp(logp - old, -20, 20),  ratio = e^x
//     l     = max(-A * ratio, -A * clip(ratio)),  at most -A * dual_clip where A < 0, or another policy loss
//     loss  = v * (l + kl_coef * KL(logp, ref) - entropy_coef * entropy)
//     d loss / d logp = v * (-A * ratio + kl_coef * KL'),  the first term only where nothing was clipped
//
// A token exactly at a bound is not clipped. Nothing is divided by the number of tokens yet.
#pragma once

#include <array>

#include "losses/aggregate.h"
#include "tensors/rows.h"

namespace fgrl {

// In the order of fgrl/types.py.
enum class PolicyLoss { CLIP, GSPO, GSPO_TOKEN, GMPO, CISPO, SAPO, REINFORCE };
enum class ImportanceLevel { TOKEN, SEQUENCE, GEOMETRIC };

// Whether the ratio is the sequence's.
constexpr bool has_sequence_ratio(PolicyLoss loss) {
  return loss == PolicyLoss::GSPO || loss == PolicyLoss::GSPO_TOKEN || loss == PolicyLoss::GMPO;
}

// The tensors of one call, contiguous; those that are not given are null. `old_logprobs` is `logprobs` when on-policy.
template <typename T>
struct PPOArguments {
  const T *logprobs, *old_logprobs, *advantages, *ref_logprobs, *entropy, *rollout_logprobs;
  TokenMask mask;
  T ratio_low, ratio_high;          // GMPO: of the log-ratio
  T dual_clip, kl_coef, entropy_coef;
  T importance_floor, importance_cap;
  T tau_positive, tau_negative;
  int kl_kind;                      // in the order of `KL_ESTIMATORS` in fgrl/ops/_library.py
  PolicyLoss policy_loss;
  ImportanceLevel importance_level;
  bool masks_importance;            // outside the bounds: 0, not the bound
  T *logprobs_grad, *entropy_grad;

  std::array<const T**, 6> inputs() {
    return {&logprobs, &old_logprobs, &advantages, &ref_logprobs, &entropy, &rollout_logprobs};
  }
  std::array<T**, 2> outputs() { return {&logprobs_grad, &entropy_grad}; }
  bool needs_sequences() const {
    return has_sequence_ratio(policy_loss) ||
           (rollout_logprobs != nullptr && importance_level != ImportanceLevel::TOKEN);
  }
};

// What the tokens of a sequence have in common, where the loss or the importance weight is about sequences.
template <typename T>
struct SequenceTerms {
  T importance = 1, ratio = 1;
  T grad = 0;                       // GSPO, GMPO: of each token that is not clipped; GSPO_TOKEN: 0 beyond the clamp, or 1
  T bounded_ratio = 1;              // GMPO: by dual_clip
  T log_low = 0, log_high = 0;      // GMPO: where tokens are clipped
};

// policy_loss, kl, entropy; clip_fraction, clip_fraction_lower, approx_kl, ratio_mean; ratio_max; tokens
using PPOTotals = Totals<3, 4, true>;

}  // namespace fgrl
