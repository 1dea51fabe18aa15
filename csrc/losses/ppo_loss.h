// The clipped PPO loss: loss, statistics and gradient of a block of tokens in one pass. Torch-free.
//
// For each valid token (fgrl/reference/ppo_loss.py), with weight v by its sequence:
//
//     x     = clamp(logp - old, -20, 20),  ratio = e^x
//     l     = max(-A * ratio, -A * clip(ratio)),  at most -A * dual_clip where A < 0
//     loss  = v * (w * l + kl_coef * KL(logp, ref) - entropy_coef * entropy)
//     d loss / d logp = v * (w * -A * ratio + kl_coef * KL'),  the first term only where nothing was clipped
//
// A token exactly at a bound is not clipped. Nothing is divided by the number of tokens yet.
#pragma once

#include <array>

#include "losses/aggregate.h"
#include "tensors/rows.h"

namespace fgrl {

// The tensors of one call, contiguous; those that are not given are null. `old_logprobs` is `logprobs` when on-policy.
template <typename T>
struct PPOArguments {
  const T *logprobs, *old_logprobs, *advantages, *ref_logprobs, *entropy, *rollout_logprobs;
  TokenMask mask;
  T ratio_low, ratio_high, dual_clip, kl_coef, entropy_coef, importance_cap;
  int kl_kind;              // in the order of `KL_ESTIMATORS` in fgrl/ops/_library.py
  T *logprobs_grad, *entropy_grad;

  std::array<const T**, 6> inputs() {
    return {&logprobs, &old_logprobs, &advantages, &ref_logprobs, &entropy, &rollout_logprobs};
  }
  std::array<T**, 2> outputs() { return {&logprobs_grad, &entropy_grad}; }
};

// policy_loss, kl, entropy; clip_fraction, clip_fraction_lower, approx_kl, ratio_mean; ratio_max; tokens
using PPOTotals = Totals<3, 4, true>;

}  // namespace fgrl
