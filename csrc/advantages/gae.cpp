// Registers the CPU implementations of the token-level ops, whose schemas are in fgrl/ops/<op>.py.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "advantages/gae.h"
#include "tensors/tensors.h"

namespace {

using namespace fgrl;

// What `gae` and `token_advantages` have in common.
template <typename T>
AdvantageArguments<T> recursion_arguments(Inputs& inputs, const Sequences& sequences, const OptionalTensor& rewards,
                                          const Tensor& values, const OptionalTensor& mask,
                                          const OptionalTensor& bootstrap, const OptionalTensor& lams, double gamma,
                                          double lam, Tensor& advantages, Tensor& returns) {
  const int64_t tokens = values.numel();
  AdvantageArguments<T> of{};
  of.rewards = inputs.read<T>(rewards, tokens);
  of.values = inputs.read<T>(values, tokens);
  of.bootstrap = inputs.read<T>(bootstrap, sequences.count);
  of.lams = inputs.read<T>(lams, sequences.count);
  of.mask = inputs.mask(mask, tokens);
  of.gamma = gamma, of.lam = lam;
  of.advantages = data<T>(advantages), of.returns = data<T>(returns);
  return of;
}

template <typename T>
void run_advantages(const AdvantageArguments<T>& arguments, const Sequences& sequences, int64_t tokens) {
  for_each_task<AdvantageScratch<T>>(sequences.count, tokens, [&](AdvantageScratch<T>& scratch, int64_t i) {
    sequence_advantages(arguments, i, sequences.begin(i), sequences.end(i), scratch);
  });
}

std::tuple<Tensor, Tensor> gae(const Tensor& rewards, const Tensor& values, const OptionalTensor& mask,
                               const OptionalTensor& bootstrap, const OptionalTensor& lams,
                               const OptionalTensor& cu_seqlens, double gamma, double lam) {
  const ScalarType dtype = compute_dtype(rewards, values, bootstrap);
  Tensor advantages = empty_like(rewards, dtype), returns = empty_like(rewards, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    Inputs inputs(dtype);
    const Sequences sequences = inputs.sequences(values, cu_seqlens);
    const auto of = recursion_arguments<T>(inputs, sequences, rewards, values, mask, bootstrap, lams, gamma, lam,
                                           advantages, returns);
    run_advantages(of, sequences, values.numel());
  });
  return {advantages, returns};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> token_advantages(
    const OptionalTensor& token_rewards, const Tensor& values, const OptionalTensor& logprobs,
    const OptionalTensor& ref_logprobs, const OptionalTensor& mask, const OptionalTensor& sequence_rewards,
    const OptionalTensor& bootstrap, const OptionalTensor& lams, const OptionalTensor& cu_seqlens, double reward_scale,
    double reward_low, double reward_high, double kl_coef, int64_t kl_estimator, double gamma, double lam) {
  const ScalarType dtype = compute_dtype(token_rewards, values, logprobs, ref_logprobs, sequence_rewards, bootstrap);
  Tensor advantages = empty_like(values, dtype), returns = empty_like(values, dtype), kl = empty_like(values, dtype);
  Tensor moments = torch::stable::empty({3}, ScalarType::Double);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    Inputs inputs(dtype);
    const Sequences sequences = inputs.sequences(values, cu_seqlens);
    const int64_t tokens = values.numel();
    auto of = recursion_arguments<T>(inputs, sequences, token_rewards, values, mask, bootstrap, lams, gamma, lam,
                                     advantages, returns);
    of.logprobs = inputs.read<T>(logprobs, tokens);
    of.ref_logprobs = inputs.read<T>(ref_logprobs, tokens);
    of.sequence_rewards = inputs.read<T>(sequence_rewards, sequences.count);
    of.reward_scale = static_cast<T>(reward_scale), of.kl_coef = static_cast<T>(kl_coef);
    of.reward_low = static_cast<T>(reward_low), of.reward_high = static_cast<T>(reward_high);
    of.kl_kind = static_cast<int>(kl_estimator % 4);  // a "+" changes no value
    of.shaped = true;
    of.kl = data<T>(kl);
    std::vector<double> parts(static_cast<size_t>(3 * sequences.count));
    of.moments = parts.data();
    run_advantages(of, sequences, tokens);
    double* total = data<double>(moments);
    std::fill(total, total + 3, 0.0);
    for (size_t i = 0; i < parts.size(); ++i) total[i % 3] += parts[i];
  });
  return {advantages, returns, kl, moments};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fgrl, CPU, library) {
  library.impl("gae", TORCH_BOX(&gae));
  library.impl("token_advantages", TORCH_BOX(&token_advantages));
}
