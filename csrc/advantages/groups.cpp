// Registers the CPU implementation of `group_advantages`, whose schema is in fgrl/ops/group_advantages.py.
#include "advantages/groups.h"

#include <torch/csrc/stable/library.h>

#include "tensors/tensors.h"

namespace {

using namespace fgrl;

Tensor group_advantages(const OptionalTensor& rewards, const Tensor& groups, const OptionalTensor& mask,
                        const OptionalTensor& token_rewards, const OptionalTensor& segment_ids,
                        const OptionalTensor& cu_seqlens, int64_t baseline, int64_t scale, double gamma,
                        std::optional<double> min_temperature) {
  STD_TORCH_CHECK(token_rewards || mask, "mask or token_rewards must be given");
  const Tensor& like = token_rewards ? *token_rewards : *mask;
  const ScalarType dtype = compute_dtype(rewards, token_rewards);
  Tensor advantages = empty_like(like, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    Inputs inputs(dtype), integers(ScalarType::Long);
    const Sequences sequences = inputs.sequences(like, cu_seqlens);
    const int64_t tokens = like.numel();
    GroupArguments<T> of{};
    of.rewards = inputs.read<T>(rewards, sequences.count);
    of.token_rewards = inputs.read<T>(token_rewards, tokens);
    of.segment_ids = integers.read<int64_t>(segment_ids, tokens);
    of.mask = inputs.mask(mask, tokens);
    of.is_min_form = min_temperature.has_value();
    of.min_temperature = min_temperature.value_or(0), of.gamma = gamma;
    of.advantages = data<T>(advantages);

    const size_t count = static_cast<size_t>(sequences.count);
    std::vector<Items> outcomes(count), scores(count);
    for_each_task<GroupScratch<T>>(sequences.count, tokens, [&](GroupScratch<T>& scratch, int64_t i) {
      sequence_items(of, i, sequences.begin(i), sequences.end(i), outcomes[i], scores[i], scratch);
    });
    const auto members = group_members(integers.read<int64_t>(groups, sequences.count), count);
    const auto by = static_cast<Baseline>(baseline);
    const auto over = static_cast<Scale>(scale);
    const std::vector<Comparison> of_outcomes = compare(outcomes, members, by, over);
    const std::vector<Comparison> of_scores = compare(scores, members, by, over);
    for_each_task<GroupScratch<T>>(sequences.count, tokens, [&](GroupScratch<T>& scratch, int64_t i) {
      write_advantages(of, i, sequences.begin(i), sequences.end(i), of_outcomes[i], of_scores[i], scratch);
    });
  });
  return advantages;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fgrl, CPU, library) { library.impl("group_advantages", TORCH_BOX(&group_advantages)); }
