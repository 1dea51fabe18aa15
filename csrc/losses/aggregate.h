// How the losses of tokens become one number (`aggregate_tokens` in fgrl/reference/ppo_loss.py).
//
// Tokens are summed in blocks of fixed size, each by one thread, and the sums of the blocks are added in order: the
// result has the same bits on any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tensors/rows.h"

namespace fgrl {

constexpr int64_t TOKENS_A_BLOCK = 4096;

// In the order of `AGGREGATIONS` in fgrl/ops/_aggregation.py.
enum class Aggregation { TOKEN_MEAN, TOKEN_SUM, SEQ_MEAN_TOKEN_SUM, SEQ_MEAN_TOKEN_MEAN };

// Some tokens and what each of their losses counts for: 1, or one in so many where a sequence is averaged first.
template <typename T>
struct Weighting {
  Sequences sequences;
  std::vector<T> weights;  // a sequence; empty where each is 1
};

// The pieces of [begin, end) that lie in one sequence each, or all of it where there is nothing to tell them apart.
template <typename T>
class Pieces {
 public:
  int64_t begin, end;
  T weight = T(1);

  Pieces(const Weighting<T>& weighting, int64_t begin_, int64_t end_)
      : begin(begin_), end(begin_), weighting_(weighting), last_(end_) {
    if (begin_ < end_ && !weighting.weights.empty()) sequence_ = weighting.sequences.at(begin_);
  }

  bool next() {
    if (end >= last_) return false;
    begin = end;
    end = last_;
    if (!weighting_.weights.empty()) {
      while (weighting_.sequences.end(sequence_) <= begin) ++sequence_;
      end = std::min(last_, weighting_.sequences.end(sequence_));
      weight = weighting_.weights[static_cast<size_t>(sequence_)];
    }
    return true;
  }

 private:
  const Weighting<T>& weighting_;
  int64_t last_, sequence_ = 0;
};

// What the blocks of a loss add up to, in the order of the op's statistics: PARTS sums that are aggregated as the loss
// is, then others that are averaged over the valid tokens, then, if there is one, the max of something, and last
// the number of valid tokens.
template <int PARTS, int MEANS, bool HAS_MAX>
struct Totals {
  static constexpr int COUNT = PARTS + MEANS + HAS_MAX, SIZE = COUNT + 1;
  double values[SIZE] = {};

  void add(const Totals& other) {
    for (int i = 0; i < SIZE; ++i) {
      const double value = other.values[i];
      if (HAS_MAX && i == PARTS + MEANS) {
        if (value > values[i] || value != value) values[i] = value;
      } else {
        values[i] += value;
      }
    }
  }

  double tokens() const { return values[COUNT]; }

  // Sums become statistics.
  void divide(double denominator) {
    for (int i = 0; i < PARTS; ++i) values[i] /= denominator;
    for (int i = PARTS; i < PARTS + MEANS; ++i) values[i] /= std::max(tokens(), 1.0);
  }
};

}  // namespace fgrl
