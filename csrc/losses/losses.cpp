// Registers the CPU implementations of the losses, whose schemas are in fgrl/ops/<op>.py.
#include <torch/csrc/stable/library.h>

#include <array>
#include <cmath>
#include <tuple>

#include "losses/losses.h"
#include "tensors/tensors.h"

namespace {

using namespace fgrl;

// How the tokens of one call are aggregated, and over what denominator: that of the caller, or what was counted here.
class Aggregator {
 public:
  Aggregator(Inputs& inputs, const Tensor& like, const TokenMask& mask, const OptionalTensor& normalizer,
             const OptionalTensor& cu_seqlens, double denominator, int64_t aggregation)
      : aggregation_(static_cast<Aggregation>(aggregation)), denominator_(denominator) {
    STD_TORCH_CHECK(aggregation >= 0 && aggregation <= 3, "unknown aggregation");
    if (normalizer) {
      Inputs counts(ScalarType::Double);
      denominator_ = *counts.read<double>(normalizer, 1);
      if (denominator_ == 0) denominator_ = 1;  // a fully masked global batch
    }
    if (aggregation_ < Aggregation::SEQ_MEAN_TOKEN_SUM) return;
    STD_TORCH_CHECK(cu_seqlens || like.dim() == 2, "sequences are rows, or given by cu_seqlens");
    sequences_ = inputs.sequences(like, cu_seqlens);
    counts_.resize(static_cast<size_t>(sequences_.count));
    for_each_task<std::vector<uint8_t>>(sequences_.count, like.numel(), [&](std::vector<uint8_t>& scratch, int64_t i) {
      const int64_t begin = sequences_.begin(i), end = sequences_.end(i);
      if (mask.data != nullptr) scratch.resize(static_cast<size_t>(end - begin));
      const uint8_t* flags = mask.bytes(begin, end, scratch.data());
      counts_[static_cast<size_t>(i)] = flags == nullptr ? end - begin : count_valid(flags, end - begin);
    });
  }

  template <typename T>
  Weighting<T> weighting() const {
    Weighting<T> result{sequences_, {}};
    if (aggregation_ == Aggregation::SEQ_MEAN_TOKEN_MEAN) {
      for (const int64_t count : counts_) result.weights.push_back(T(1) / static_cast<T>(std::max<int64_t>(count, 1)));
    }
    return result;
  }

  double denominator(double tokens) const {
    if (denominator_ > 0 || std::isnan(denominator_)) return denominator_;
    if (aggregation_ == Aggregation::TOKEN_SUM) return 1;
    if (aggregation_ == Aggregation::TOKEN_MEAN) return std::max(tokens, 1.0);
    const auto occupied = std::count_if(counts_.begin(), counts_.end(), [](int64_t count) { return count > 0; });
    return std::max<double>(static_cast<double>(occupied), 1.0);
  }

 private:
  Aggregation aggregation_;
  double denominator_;
  Sequences sequences_;
  std::vector<int64_t> counts_;
};

// The sum of `block(begin, end, mask)` over the blocks of a batch.
template <typename Totals, typename Block>
Totals sum_blocks(int64_t tokens, const TokenMask& mask, const Block& block) {
  const int64_t count = (tokens + TOKENS_A_BLOCK - 1) / TOKENS_A_BLOCK;
  std::vector<Totals> parts(static_cast<size_t>(count));
  for_each_task<std::vector<uint8_t>>(count, tokens, [&](std::vector<uint8_t>& scratch, int64_t i) {
    const int64_t begin = i * TOKENS_A_BLOCK, end = std::min(begin + TOKENS_A_BLOCK, tokens);
    if (mask.data != nullptr) scratch.resize(TOKENS_A_BLOCK);
    parts[static_cast<size_t>(i)] = block(begin, end, mask.bytes(begin, end, scratch.data()));
  });
  Totals total;
  for (const Totals& part : parts) total.add(part);
  return total;
}

// The sum of `block(first, last, mask)` over groups of whole sequences with at least TOKENS_A_BLOCK tokens each.
template <typename Totals, typename Block>
Totals sum_sequences(const Sequences& sequences, const TokenMask& mask, const Block& block) {
  std::vector<int64_t> groups{0};
  for (int64_t i = 1; i <= sequences.count; ++i) {
    const int64_t tokens = sequences.begin(i) - sequences.begin(groups.back());
    if (i == sequences.count || tokens >= TOKENS_A_BLOCK) groups.push_back(i);
  }
  const int64_t count = static_cast<int64_t>(groups.size()) - 1, tokens = sequences.begin(sequences.count);
  std::vector<Totals> parts(static_cast<size_t>(count));
  for_each_task<std::vector<uint8_t>>(count, tokens, [&](std::vector<uint8_t>& scratch, int64_t i) {
    const size_t task = static_cast<size_t>(i);
    const int64_t begin = sequences.begin(groups[task]), end = sequences.begin(groups[task + 1]);
    if (mask.data != nullptr) scratch.resize(static_cast<size_t>(end - begin));
    parts[task] = block(groups[task], groups[task + 1], mask.bytes(begin, end, scratch.data()));
  });
  Totals total;
  for (const Totals& part : parts) total.add(part);
  return total;
}

template <typename T>
void write(Tensor& to, const double* from, int64_t size) {
  T* out = data<T>(to);
  for (int64_t i = 0; i < size; ++i) out[i] = static_cast<T>(from[i]);
}

Tensor empty_scalar(ScalarType dtype) { return torch::stable::empty(std::vector<int64_t>{}, dtype); }

// The gradient of an input, or nothing where it is not wanted.
Tensor empty_gradient(bool wanted, const Tensor& like, ScalarType dtype) {
  return wanted ? empty_like(like, dtype) : torch::stable::empty({0}, dtype);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ppo_loss(
    const Tensor& logprobs, const OptionalTensor& old_logprobs, const Tensor& advantages, const OptionalTensor& mask,
    const OptionalTensor& ref_logprobs, const OptionalTensor& entropy, const OptionalTensor& rollout_logprobs,
    const OptionalTensor& normalizer, const OptionalTensor& cu_seqlens, double denominator, int64_t aggregation,
    double clip_low, double clip_high, double dual_clip, double kl_coef, int64_t kl_estimator, double entropy_coef,
    double importance_cap, int64_t policy_loss, double tau_positive, double tau_negative, double importance_floor,
    int64_t importance_level, bool importance_mask, bool grad_logprobs, bool grad_entropy) {
  STD_TORCH_CHECK(policy_loss >= 0 && policy_loss <= 6, "unknown policy loss");
  STD_TORCH_CHECK(importance_level >= 0 && importance_level <= 2, "unknown importance level");
  const ScalarType dtype = compute_dtype(logprobs, old_logprobs, advantages, ref_logprobs, entropy, rollout_logprobs);
  const int64_t tokens = logprobs.numel();
  Tensor loss = empty_scalar(dtype), scale = empty_scalar(dtype);
  Tensor stats = torch::stable::empty({PPOTotals::SIZE}, dtype);
  Tensor logprobs_grad = empty_gradient(grad_logprobs, logprobs, dtype);
  Tensor entropy_grad = empty_gradient(grad_entropy, logprobs, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    Inputs inputs(dtype);
    PPOArguments<T> of{};
    of.logprobs = inputs.read<T>(logprobs, tokens);
    of.old_logprobs = old_logprobs ? inputs.read<T>(old_logprobs, tokens) : of.logprobs;
    of.advantages = inputs.read<T>(advantages, tokens);
    of.ref_logprobs = inputs.read<T>(ref_logprobs, tokens);
    of.entropy = inputs.read<T>(entropy, tokens);
    of.rollout_logprobs = inputs.read<T>(rollout_logprobs, tokens);
    of.mask = inputs.mask(mask, tokens);
    of.policy_loss = static_cast<PolicyLoss>(policy_loss);
    const double middle = of.policy_loss == PolicyLoss::GMPO ? 0 : 1;
    of.ratio_low = static_cast<T>(middle - clip_low), of.ratio_high = static_cast<T>(middle + clip_high);
    of.dual_clip = static_cast<T>(dual_clip);
    of.tau_positive = static_cast<T>(tau_positive), of.tau_negative = static_cast<T>(tau_negative);
    of.importance_floor = static_cast<T>(importance_floor), of.importance_cap = static_cast<T>(importance_cap);
    of.importance_level = static_cast<ImportanceLevel>(importance_level), of.masks_importance = importance_mask;
    of.kl_coef = static_cast<T>(kl_coef), of.entropy_coef = static_cast<T>(entropy_coef);
    of.kl_kind = static_cast<int>(kl_estimator);
    if (grad_logprobs) of.logprobs_grad = data<T>(logprobs_grad);
    if (grad_entropy) of.entropy_grad = data<T>(entropy_grad);

    const Aggregator aggregator(inputs, logprobs, of.mask, normalizer, cu_seqlens, denominator, aggregation);
    const Weighting<T> weighting = aggregator.weighting<T>();
    PPOTotals totals;
    if (of.needs_sequences()) {
      STD_TORCH_CHECK(cu_seqlens || logprobs.dim() == 2, "sequences are rows, or given by cu_seqlens");
      const Sequences sequences = inputs.sequences(logprobs, cu_seqlens);
      const auto block = [&](int64_t first, int64_t last, const uint8_t* flags) {
        return FGRL_DISPATCH(ppo_sequences, T)(of, weighting, sequences, first, last, flags);
      };
      totals = sum_sequences<PPOTotals>(sequences, of.mask, block);
    } else {
      totals = sum_blocks<PPOTotals>(tokens, of.mask, [&](int64_t begin, int64_t end, const uint8_t* flags) {
        return FGRL_DISPATCH(ppo_block, T)(of, weighting, begin, end, flags);
      });
    }
    const double divisor = aggregator.denominator(totals.tokens()), factor = 1 / divisor;
    totals.divide(divisor);
    double total = totals.values[0];
    if (kl_coef != 0) total += kl_coef * totals.values[1];
    if (entropy_coef != 0) total -= entropy_coef * totals.values[2];
    write<T>(loss, &total, 1), write<T>(stats, totals.values, PPOTotals::SIZE), write<T>(scale, &factor, 1);
  });
  return {loss, stats, scale, logprobs_grad, entropy_grad};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> value_loss(const Tensor& values, const OptionalTensor& old_values,
                                                      const Tensor& returns, const OptionalTensor& mask,
                                                      const OptionalTensor& normalizer,
                                                      const OptionalTensor& cu_seqlens, double denominator,
                                                      int64_t aggregation, double clip, bool grad_values) {
  const ScalarType dtype = compute_dtype(values, old_values, returns);
  const int64_t tokens = values.numel();
  Tensor loss = empty_scalar(dtype), scale = empty_scalar(dtype);
  Tensor stats = torch::stable::empty({ValueTotals::SIZE}, dtype);
  Tensor values_grad = empty_gradient(grad_values, values, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    Inputs inputs(dtype);
    ValueArguments<T> of{};
    of.values = inputs.read<T>(values, tokens);
    if (std::isfinite(clip)) of.old_values = inputs.read<T>(old_values, tokens);
    of.returns = inputs.read<T>(returns, tokens);
    of.mask = inputs.mask(mask, tokens);
    of.clip = static_cast<T>(clip);
    if (grad_values) of.values_grad = data<T>(values_grad);

    const Aggregator aggregator(inputs, values, of.mask, normalizer, cu_seqlens, denominator, aggregation);
    const Weighting<T> weighting = aggregator.weighting<T>();
    ValueTotals totals =
        sum_blocks<ValueTotals>(tokens, of.mask, [&](int64_t begin, int64_t end, const uint8_t* flags) {
          return FGRL_DISPATCH(value_block, T)(of, weighting, begin, end, flags);
        });
    const double divisor = aggregator.denominator(totals.tokens()), factor = 1 / divisor;
    totals.divide(divisor);
    write<T>(loss, totals.values, 1), write<T>(stats, totals.values, ValueTotals::SIZE), write<T>(scale, &factor, 1);
  });
  return {loss, stats, scale, values_grad};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> edit_preference_loss(
    const Tensor& chosen_rewards, const Tensor& rejected_rewards, const Tensor& chosen_edits,
    const Tensor& rejected_edits, const OptionalTensor& chosen_mask, const OptionalTensor& rejected_mask, bool mean,
    double unchanged_weight, double margin, bool grad_chosen_rewards, bool grad_rejected_rewards) {
  STD_TORCH_CHECK(chosen_rewards.dim() == 2 && rejected_rewards.dim() == 2 &&
                      chosen_rewards.size(0) == rejected_rewards.size(0),
                  "chosen_rewards and rejected_rewards must have two dimensions, of which the first agree");
  const ScalarType dtype = compute_dtype(chosen_rewards, rejected_rewards);
  const int64_t pairs = chosen_rewards.size(0);
  Tensor loss = empty_scalar(dtype), scale = empty_scalar(dtype), margins = torch::stable::empty({pairs}, dtype);
  Tensor chosen_grad = empty_gradient(grad_chosen_rewards, chosen_rewards, dtype);
  Tensor rejected_grad = empty_gradient(grad_rejected_rewards, rejected_rewards, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    Inputs inputs(dtype);
    const auto read = [&](const Tensor& rewards, const Tensor& edits, const OptionalTensor& mask, bool wanted,
                          Tensor& gradient) {
      const int64_t tokens = rewards.numel();
      return EditSide<T>{inputs.read<T>(rewards, tokens), inputs.mask(edits, tokens), inputs.mask(mask, tokens),
                         rewards.size(1), wanted ? data<T>(gradient) : nullptr};
    };
    const EditSide<T> sides[2] = {
        read(chosen_rewards, chosen_edits, chosen_mask, grad_chosen_rewards, chosen_grad),
        read(rejected_rewards, rejected_edits, rejected_mask, grad_rejected_rewards, rejected_grad)};
    T* margin_of = data<T>(margins);
    std::vector<double> losses(static_cast<size_t>(pairs));
    using Scratch = std::array<EditFlags, 2>;
    for_each_task<Scratch>(pairs, chosen_rewards.numel() + rejected_rewards.numel(), [&](Scratch& flags, int64_t i) {
      EditSums sums[2];
      double score[2];
      for (size_t k : {0, 1}) {
        flags[k].read(sides[k], i);
        const T* rewards = sides[k].rewards + i * sides[k].width;
        sums[k] = FGRL_DISPATCH(edit_sums, T)(rewards, flags[k], sides[k].width);
        if (!mean) sums[k].edited = 1;  // what a score is divided by
        score[k] = sums[k].score / static_cast<double>(std::max<int64_t>(sums[k].edited, 1));
      }
      const double ahead = score[0] - score[1] - margin, kept = static_cast<double>(sums[0].kept + sums[1].kept);
      const double penalty = unchanged_weight / std::max(kept, 1.0), pull = 1 / (1 + std::exp(ahead));
      double& pair_loss = losses[static_cast<size_t>(i)];
      pair_loss = std::max(-ahead, 0.0) + std::log1p(std::exp(-std::fabs(ahead)));
      if (unchanged_weight != 0) pair_loss += penalty * (sums[0].squares + sums[1].squares);
      margin_of[i] = static_cast<T>(score[0] - score[1]);
      for (size_t k : {0, 1}) {
        const EditSide<T>& side = sides[k];
        if (side.rewards_grad == nullptr) continue;
        const double grad = (k == 0 ? -pull : pull) / static_cast<double>(std::max<int64_t>(sums[k].edited, 1));
        FGRL_DISPATCH(edit_gradient, T)
        (side.rewards + i * side.width, flags[k], side.width, static_cast<T>(grad), static_cast<T>(2 * penalty),
         side.rewards_grad + i * side.width);
      }
    });
    const double factor = 1 / static_cast<double>(std::max<int64_t>(pairs, 1));
    double total = 0;
    for (const double pair_loss : losses) total += pair_loss;
    total *= factor;
    write<T>(loss, &total, 1), write<T>(scale, &factor, 1);
  });
  return {loss, margins, scale, chosen_grad, rejected_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fgrl, CPU, library) {
  library.impl("edit_preference_loss", TORCH_BOX(&edit_preference_loss));
  library.impl("ppo_loss", TORCH_BOX(&ppo_loss));
  library.impl("value_loss", TORCH_BOX(&value_loss));
}
