// Advantages within groups of responses to one prompt (fgrl/reference/group_advantages.py). Torch-free.
//
// What is compared are items: a sequence's outcome, or the scores of its tokens or segments. In three steps:
//
//     sequence_items       count, sum and squared deviations of each sequence's items
//     compare              what an item's baseline and scale are, sequence by sequence; one thread, no token is read
//     write_advantages     x' = (x - centre) * factor, and for tokens and segments G_t = x'_t + gamma * G_t'
//
// Sums are in double, and those over sequences in their order, so that nothing depends on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <utility>
#include <vector>

#include "simd/vector.h"
#include "tensors/rows.h"

namespace fgrl {

enum class Baseline { MEAN, LEAVE_ONE_OUT, NONE };
enum class Scale { GROUP, BATCH, NONE };

// The tensors of one call; those that are not given are null. All are contiguous.
template <typename T>
struct GroupArguments {
  const T* rewards;            // a sequence
  const T* token_rewards;      // a token
  const int64_t* segment_ids;  // a token
  TokenMask mask;
  bool is_min_form;
  double min_temperature, gamma;
  T* advantages;
};

struct Items {
  double count = 0, total = 0, squares = 0;  // squares of the deviations from their own mean

  double mean() const { return total / std::max(count, 1.0); }
};

// What an item becomes: (x - centre) * factor.
struct Comparison {
  double centre = 0, factor = 1;
};

// What one thread needs between sequences.
template <typename T>
struct GroupScratch {
  std::vector<uint8_t> mask, is_end;
  std::vector<TokenRun> runs;
  std::vector<T> rewards, scores, advantages;
  std::vector<int64_t> ids, ends;
};

// Powers of the discount for a vector of tokens: gamma^1, gamma^2, gamma^4, ...
template <typename T>
struct Discount {
  T gamma, powers[8];

  explicit Discount(double gamma_) : gamma(static_cast<T>(gamma_)) {
    for (T& power : powers) power = static_cast<T>(gamma_), gamma_ *= gamma_;
  }
};

#define FGRL_KERNEL_FILE "advantages/groups.inc"
#include "simd/for_each_isa.inc"

// The valid tokens of one sequence.
struct ValidTokens {
  const uint8_t* mask;  // of the sequence; null where all are valid
  int64_t first, last;  // the first one, and behind the last one
  int64_t count;

  bool has_holes() const { return count < last - first; }
};

template <typename T>
ValidTokens find_tokens(const GroupArguments<T>& of, int64_t begin, int64_t end, GroupScratch<T>& scratch) {
  const int64_t size = end - begin;
  if (of.mask.data == nullptr) return {nullptr, 0, size, size};
  scratch.mask.resize(static_cast<size_t>(size));
  const uint8_t* mask = of.mask.bytes(begin, end, scratch.mask.data());
  const int64_t last = size - trailing_zeros(mask, size), first = next_token(mask, 0, last, false);
  ValidTokens tokens{mask, first, last, count_valid(mask + first, last - first)};
  if (tokens.has_holes()) find_runs(mask + first, last - first, scratch.runs);
  return tokens;
}

// Each score times its share of softmax(-score / temperature); at 0 the first least one alone. A NaN is the least.
template <typename T>
void weigh_by_softmin(std::vector<T>& scores, double temperature) {
  if (scores.empty()) return;
  size_t at = 0;
  for (size_t i = 1; i < scores.size(); ++i) {
    if (scores[i] < scores[at] || (std::isnan(scores[i]) && !std::isnan(scores[at]))) at = i;
  }
  const double least = static_cast<double>(scores[at]);
  if (temperature == 0) {
    std::fill(scores.begin(), scores.end(), T(0));
    scores[at] = static_cast<T>(least);
    return;
  }
  double total = 0;
  for (const T score : scores) total += std::exp((least - static_cast<double>(score)) / temperature);
  for (T& score : scores) {
    const double share = std::exp((least - static_cast<double>(score)) / temperature) / total;
    score = static_cast<T>(static_cast<double>(score) * share);
  }
}

// The scores of a sequence's valid tokens, or of its segments, whose last tokens are then in `scratch.ends`.
template <typename T>
std::pair<const T*, int64_t> find_scores(const GroupArguments<T>& of, int64_t begin, const ValidTokens& tokens,
                                         GroupScratch<T>& scratch) {
  const T* rewards = of.token_rewards + begin + tokens.first;
  const size_t size = static_cast<size_t>(tokens.count);
  if (tokens.has_holes()) {
    scratch.rewards.resize(size);
    bring_together(rewards, scratch.runs, scratch.rewards.data());
    rewards = scratch.rewards.data();
  }
  if (of.segment_ids == nullptr && !of.is_min_form) return {rewards, tokens.count};
  if (of.segment_ids == nullptr) {
    scratch.scores.assign(rewards, rewards + size);
  } else {
    const int64_t* ids = of.segment_ids + begin + tokens.first;
    if (tokens.has_holes()) {
      scratch.ids.resize(size);
      bring_together(ids, scratch.runs, scratch.ids.data());
      ids = scratch.ids.data();
    }
    scratch.is_end.resize(size);
    for (size_t t = 0; t + 1 < size; ++t) scratch.is_end[t] = ids[t] != ids[t + 1];
    if (size > 0) scratch.is_end[size - 1] = 1;
    scratch.ends.clear(), scratch.scores.clear();
    for (int64_t t = 0; t < tokens.count; ++t) {
      t = next_token(scratch.is_end.data(), t, tokens.count, false);
      scratch.ends.push_back(t), scratch.scores.push_back(rewards[t]);
    }
  }
  if (of.is_min_form) weigh_by_softmin(scratch.scores, of.min_temperature);
  return {scratch.scores.data(), static_cast<int64_t>(scratch.scores.size())};
}

// One sequence, tokens [begin, end) of the batch: its outcome as an item, and its scores, of which there may be none.
template <typename T>
void sequence_items(const GroupArguments<T>& of, int64_t sequence, int64_t begin, int64_t end, Items& outcome,
                    Items& scores, GroupScratch<T>& scratch) {
  const ValidTokens tokens = find_tokens(of, begin, end, scratch);
  if (of.rewards != nullptr && tokens.count > 0) outcome = {1, static_cast<double>(of.rewards[sequence]), 0};
  if (of.token_rewards == nullptr) return;
  const auto [values, count] = find_scores(of, begin, tokens, scratch);
  FGRL_DISPATCH(add_up, T)(values, count, scores);
}

// Of all these items together, given the parts of it by `part(i)`.
template <typename Part>
Items pool(size_t parts, const Part& part) {
  Items all;
  for (size_t i = 0; i < parts; ++i) all.count += part(i).count, all.total += part(i).total;
  for (size_t i = 0; i < parts; ++i) {
    const double shift = part(i).mean() - all.mean();
    all.squares += part(i).squares + part(i).count * shift * shift;
  }
  return all;
}

// Sequences by the group that they are in, in order.
inline std::vector<std::vector<size_t>> group_members(const int64_t* ids, size_t count) {
  std::vector<std::vector<size_t>> members;
  std::unordered_map<int64_t, size_t> places;
  for (size_t i = 0; i < count; ++i) {
    const auto [place, is_new] = places.try_emplace(ids[i], members.size());
    if (is_new) members.emplace_back();
    members[place->second].push_back(i);
  }
  return members;
}

inline std::vector<Comparison> compare(const std::vector<Items>& items,
                                       const std::vector<std::vector<size_t>>& groups, Baseline baseline, Scale scale) {
  constexpr double SCALE_FLOOR = 1e-6;
  const auto factor = [](const Items& of) {
    return of.count > 1 ? 1 / (std::sqrt(of.squares / (of.count - 1)) + SCALE_FLOOR) : 1.0;
  };
  std::vector<Comparison> result(items.size());
  const double batch_factor = scale == Scale::BATCH ? factor(pool(items.size(), [&](size_t i) { return items[i]; })) : 1;
  for (const auto& members : groups) {
    const Items group = pool(members.size(), [&](size_t i) { return items[members[i]]; });
    const double by = scale == Scale::GROUP ? factor(group) : batch_factor;
    for (const size_t i : members) {
      const double others = group.count - items[i].count;
      result[i].factor = by;
      if (baseline != Baseline::NONE) result[i].centre = group.mean();
      if (baseline == Baseline::LEAVE_ONE_OUT && others > 0) {
        result[i].centre = (group.total - items[i].total) / others;
      }
    }
  }
  return result;
}

template <typename T>
T compared(T item, const Comparison& by) {
  return static_cast<T>((static_cast<double>(item) - by.centre) * by.factor);
}

// One sequence, tokens [begin, end) of the batch.
template <typename T>
void write_advantages(const GroupArguments<T>& of, int64_t sequence, int64_t begin, int64_t end,
                      const Comparison& of_outcomes, const Comparison& of_scores, GroupScratch<T>& scratch) {
  const T outcome = of.rewards == nullptr ? T(0) : compared(of.rewards[sequence], of_outcomes);
  T* const out = of.advantages + begin;
  const ValidTokens tokens = find_tokens(of, begin, end, scratch);
  std::fill(out, out + tokens.first, T(0));
  std::fill(out + tokens.last, out + (end - begin), T(0));
  if (of.token_rewards == nullptr) {
    std::fill(out + tokens.first, out + tokens.last, outcome);
    if (!tokens.has_holes()) return;
    int64_t hole = tokens.first;
    for (const TokenRun& run : scratch.runs) {
      std::fill(out + hole, out + tokens.first + run.begin, T(0));
      hole = tokens.first + run.end;
    }
    return;
  }
  const auto [scores, count] = find_scores(of, begin, tokens, scratch);
  T* to = out + tokens.first;
  if (tokens.has_holes()) {
    scratch.advantages.resize(static_cast<size_t>(tokens.count));
    to = scratch.advantages.data();
  }
  const Discount<T> discount(of.gamma);
  if (of.segment_ids == nullptr) {
    FGRL_DISPATCH(returns_to_go, T)(scores, count, of_scores, discount, outcome, to);
  } else {
    T following = 0;
    for (int64_t k = count; k-- > 0;) {
      following = compared(scores[k], of_scores) + discount.gamma * following;
      std::fill(to + (k == 0 ? 0 : scratch.ends[k - 1] + 1), to + scratch.ends[k] + 1, following + outcome);
    }
  }
  if (tokens.has_holes()) spread(to, scratch.runs, out + tokens.first);
}

}  // namespace fgrl
