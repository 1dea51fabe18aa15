// Diagonal-transition alignment (Ukkonen 1985, Myers 1986) for small distances: O(d^2 + n) for distance d.
//
// reach[e][k] is the largest i for which D[i][i - k] <= e. D does not fall along a diagonal, so D[i][j] <= e exactly
// when i <= reach[e][i - j], which is all that the trace-back asks. Only token equality is used: no hashing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "equal_run.h"
#include "trace.h"

namespace fgrl {

class Wavefront {
 public:
  explicit Wavefront(EqualRun equal_run) : equal_run_(equal_run) {}

  // Finds the distance if it is at most `limit`; gives up early when more than `worth`^2 further cells seem to be needed.
  // Once it has found it, `align` may be called with the same cores.
  template <typename Token>
  bool search(Core<Token> a, Core<Token> b, int64_t limit, int64_t worth) {
    const int32_t n = static_cast<int32_t>(a.size), m = static_cast<int32_t>(b.size), goal = n - m;
    levels_.clear();
    reach_.clear();
    int32_t low = 0, high = 0;  // diagonals of this level
    for (int64_t e = 0; e <= limit; ++e) {
      if (e > 0) {
        // A diagonal further from the goal than there are edits left is of no use.
        const int32_t left = static_cast<int32_t>(std::min<int64_t>(limit - e, INT32_MAX / 2));
        low = std::max({low - 1, -m, goal - left});
        high = std::min({high + 1, n, goal + left});
        if (low > high) return false;
      }
      const int32_t* level = add_level(a, b, low, high);
      if (low <= goal && goal <= high && level[goal] == n) {
        distance_ = e;
        return true;
      }
      // The cost of going on is that of the cells between here and the distance that the tokens passed per edit promise,
      // and what is spent is spent.
      if (4 * e < worth) continue;
      int64_t progress = 0;
      for (int32_t k = low; k <= high; ++k) progress = std::max(progress, 2 * static_cast<int64_t>(level[k]) - k);
      const double expected = static_cast<double>(e) * (static_cast<double>(n) + m) / static_cast<double>(progress);
      if (expected * expected > static_cast<double>(worth) * worth + static_cast<double>(e) * e) return false;
    }
    return false;
  }

  template <typename Token>
  int64_t align(Core<Token> a, Core<Token> b, int64_t prefix, const Labels& labels) const {
    int64_t e = distance_;
    return trace_back(equal_run_, a, b, prefix, labels, [&](int64_t i, int64_t j) {
      --e;  // unless the run ends here, the cell before this one is on the level below
      if (a.tokens[i - 1] != b.tokens[j - 1] && within(e, i - 1, j - 1)) return 0u;
      if (within(e, i - 1, j)) return MAY_DELETE;
      if (within(e, i, j - 1)) return MAY_INSERT;
      ++e;
      return 0u;
    });
  }

  size_t memory() const { return levels_.capacity() * sizeof(Level) + reach_.capacity() * sizeof(int32_t); }

 private:
  struct Level {
    int32_t low, high;  // its diagonals
    int64_t at;         // where diagonal 0 is, or would be, in `reach_`
  };

  // Takes one more edit everywhere and follows equal tokens; returns the new level, indexed by diagonal.
  template <typename Token>
  const int32_t* add_level(Core<Token> a, Core<Token> b, int32_t low, int32_t high) {
    const int32_t n = static_cast<int32_t>(a.size), m = static_cast<int32_t>(b.size);
    // Two entries on either side that no path reaches spare the loop its special cases.
    const size_t begin = reach_.size();
    reach_.resize(begin + static_cast<size_t>(high - low + 1 + 2 * MARGIN));
    int32_t* const end = reach_.data() + reach_.size();
    std::fill_n(reach_.data() + begin, MARGIN, NONE);
    std::fill_n(end - MARGIN, MARGIN, NONE);
    levels_.push_back({low, high, static_cast<int64_t>(begin) + MARGIN - low});
    int32_t* const level = reach_.data() + levels_.back().at;
    const bool first = levels_.size() == 1;
    const int32_t* const before = first ? level : reach_.data() + levels_[levels_.size() - 2].at;
    int32_t deleted = first ? NONE : before[low - 1], same = first ? NONE : before[low];
    for (int32_t k = low; k <= high; ++k) {
      const int32_t inserted = first ? 0 : before[k + 1];
      const int32_t last = std::min(n, m + k);
      int32_t i = std::max(std::max(deleted, same) + 1, inserted);
      if (i >= last) {
        i = last;
      } else if (a.tokens[i] == b.tokens[i - k]) {
        i += static_cast<int32_t>(equal_run_.prefix(a.tokens + i, b.tokens + i - k, last - i));
      }
      level[k] = i;
      deleted = same, same = inserted;
    }
    return level;
  }

  // Whether D[i][j] <= e.
  bool within(int64_t e, int64_t i, int64_t j) const {
    if (e < 0) return false;
    const Level& level = levels_[e];
    const int64_t k = i - j;
    return k >= level.low && k <= level.high && i <= reach_[level.at + k];
  }

  static constexpr int32_t NONE = INT32_MIN / 2;
  static constexpr int32_t MARGIN = 2;
  EqualRun equal_run_;
  std::vector<Level> levels_;
  std::vector<int32_t> reach_;
  int64_t distance_ = 0;
};

}  // namespace fgrl
