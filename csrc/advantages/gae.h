// Generalised advantage estimation, alone and with the reward shaping of `token_advantages`. Torch-free.
//
// For each valid token t, with t' the next valid token of its sequence (fgrl/reference/gae.py):
//
//     delta_t = r_t + gamma * V_t' - V_t
//     A_t     = delta_t + c * A_t',   c = gamma * lam
//     returns = A_t + V_t
//
// A sequence is worked on from its end. With L lanes the recursion of L tokens is a scan, log2(L) steps of
// `x_t += c^k * x_(t+k)`, and the tokens after them enter as `c^(L-t) * A`. Tokens with holes between them are first
// brought together, so that a hole is as if it were cut out, to the bit. Nothing depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tensors/rows.h"
#include "simd/vector.h"

namespace fgrl {

// The tensors of one call; those that are not given are null. All are contiguous.
template <typename T>
struct AdvantageArguments {
  const T *rewards, *values, *logprobs, *ref_logprobs;      // a token
  const T *sequence_rewards, *bootstrap, *lams;             // a sequence
  TokenMask mask;
  T reward_scale, reward_low, reward_high, kl_coef;
  int kl_kind;
  double gamma, lam;
  bool shaped;              // rewards are to be shaped first, and `kl` and `moments` to be written
  T *advantages, *returns, *kl;
  double* moments;          // [sequences][3]: count, sum and sum of squares of the advantages
};

// What one thread needs between sequences.
template <typename T>
struct AdvantageScratch {
  std::vector<uint8_t> mask;
  std::vector<TokenRun> runs;
  std::vector<T> inputs[4], outputs[3];
};

// Tokens without holes between them.
template <typename T>
struct DenseTokens {
  const T *rewards, *values, *logprobs, *ref_logprobs;
  T *advantages, *returns, *kl;
  int64_t size;
};

template <typename T>
struct Recursion {
  T gamma, decay;
  T powers[8];  // decay^1, decay^2, decay^4, ...
  T next_advantage, next_value;

  Recursion(double gamma_, double decay_, T bootstrap)
      : gamma(static_cast<T>(gamma_)), decay(static_cast<T>(decay_)), next_advantage(0), next_value(bootstrap) {
    double power = decay_;
    for (T& p : powers) p = static_cast<T>(power), power *= power;
  }

  // The same recursion one token after the other.
  void run_serially(const T* rewards, const T* values, int64_t size, T* advantages, T* returns) {
    for (int64_t t = size - 1; t >= 0; --t) {
      const T delta = rewards[t] + gamma * next_value - values[t];
      next_advantage = delta + decay * next_advantage;
      next_value = values[t];
      advantages[t] = next_advantage;
      returns[t] = next_advantage + next_value;
    }
  }
};

#define FGRL_KERNEL_FILE "advantages/gae.inc"
#include "simd/for_each_isa.inc"

// One sequence: tokens [begin, end) of the batch.
template <typename T>
void sequence_advantages(const AdvantageArguments<T>& of, int64_t sequence, int64_t begin, int64_t end,
                         AdvantageScratch<T>& scratch) {
  const int64_t size = end - begin;
  if (of.mask.data != nullptr) scratch.mask.resize(static_cast<size_t>(size));
  const uint8_t* mask = of.mask.bytes(begin, end, scratch.mask.data());
  int64_t first = 0, last = size;
  if (mask != nullptr) {
    last -= trailing_zeros(mask, size);
    while (first < last && mask[first] == 0) ++first;
  }
  const int64_t range = last - first, valid = mask == nullptr ? range : count_valid(mask + first, range);
  for (T* out : {of.advantages, of.returns, of.kl}) {
    if (out == nullptr) continue;
    std::fill(out + begin, out + begin + first, T(0));
    std::fill(out + begin + last, out + end, T(0));
  }

  const auto at = [&](auto* pointer) { return pointer == nullptr ? nullptr : pointer + begin + first; };
  const T* const inputs[4] = {at(of.rewards), at(of.values), at(of.logprobs), at(of.ref_logprobs)};
  T* const outputs[3] = {at(of.advantages), at(of.returns), at(of.kl)};
  const bool holes = valid < range;
  if (holes) find_runs(mask + first, range, scratch.runs);
  const T* from[4];
  T* to[3];
  for (int k = 0; k < 4; ++k) {
    from[k] = inputs[k];
    if (!holes || inputs[k] == nullptr) continue;
    scratch.inputs[k].resize(static_cast<size_t>(valid));
    bring_together(inputs[k], scratch.runs, scratch.inputs[k].data());
    from[k] = scratch.inputs[k].data();
  }
  for (int k = 0; k < 3; ++k) {
    to[k] = outputs[k];
    if (!holes || outputs[k] == nullptr) continue;
    scratch.outputs[k].resize(static_cast<size_t>(valid));
    to[k] = scratch.outputs[k].data();
  }

  const double decay = of.gamma * (of.lams == nullptr ? of.lam : static_cast<double>(of.lams[sequence]));
  Recursion<T> recursion(of.gamma, decay, of.bootstrap == nullptr ? T(0) : of.bootstrap[sequence]);
  FGRL_DISPATCH(dense_advantages, T)
  (of, sequence, {from[0], from[1], from[2], from[3], to[0], to[1], to[2], valid}, recursion);
  if (!holes) return;
  for (int k = 0; k < 3; ++k) {
    if (outputs[k] != nullptr) spread(to[k], scratch.runs, outputs[k]);
  }
}

}  // namespace fgrl
