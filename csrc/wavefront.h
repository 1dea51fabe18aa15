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
  // Finds the distance if it is at most `limit` and looks likely to be, from how far the first steps got.
  // Then `align` may be called with the same cores.
  template <typename Token>
  bool search(Core<Token> a, Core<Token> b, int64_t limit) {
    const int32_t n = static_cast<int32_t>(a.size), m = static_cast<int32_t>(b.size), goal = n - m;
    reach_.clear();
    first_.clear();
    start_.clear();
    int32_t low = 0, high = 0;  // diagonals of this level
    for (int64_t e = 0; e <= limit; ++e) {
      if (e > 0) {
        // A diagonal further from the goal than there are edits left is of no use.
        const int32_t left = static_cast<int32_t>(std::min<int64_t>(limit - e, INT32_MAX / 2));
        low = std::max({low - 1, -m, goal - left});
        high = std::min({high + 1, n, goal + left});
        if (low > high) return false;
      }
      const size_t at = reach_.size();
      first_.push_back(low);
      start_.push_back(at);
      reach_.resize(at + (high - low + 1));
      int32_t* level = reach_.data() + at;
      if (e == 0) {
        level[0] = 0;
      } else {
        step(static_cast<size_t>(e) - 1, low, high, n, m, level);
      }
      int64_t progress = 0;
      for (int32_t k = low; k <= high; ++k) {
        int32_t i = level[k - low];
        const int32_t end = std::min(n, m + k);
        if (i < end && a.tokens[i] == b.tokens[i - k]) {
          i += static_cast<int32_t>(equal_prefix(a.tokens + i, b.tokens + i - k, end - i));
          level[k - low] = i;
        }
        progress = std::max<int64_t>(progress, 2 * static_cast<int64_t>(i) - k);
      }
      if (low <= goal && goal <= high && level[goal - low] == n) {
        distance_ = e;
        return true;
      }
      // A quarter of the way, the tokens passed per edit say whether the limit will do. What is wasted if it will not is
      // a sixteenth of the search.
      if (4 * e >= limit && 2 * e * (static_cast<int64_t>(n) + m) > 3 * limit * progress) return false;
    }
    return false;
  }

  template <typename Token>
  int64_t align(Core<Token> a, Core<Token> b, int64_t prefix, const Labels& labels) const {
    int64_t e = distance_;
    return trace_back(a, b, prefix, labels, [&](int64_t i, int64_t j) {
      --e;  // unless the run ends here, the cell before this one is on the level below
      if (a.tokens[i - 1] != b.tokens[j - 1] && within(e, i - 1, j - 1)) return 0u;
      if (within(e, i - 1, j)) return MAY_DELETE;
      if (within(e, i, j - 1)) return MAY_INSERT;
      ++e;
      return 0u;
    });
  }

 private:
  // One more edit from level `from`, before equal tokens are followed.
  void step(size_t from, int32_t low, int32_t high, int32_t n, int32_t m, int32_t* level) const {
    const int32_t* before = reach_.data() + start_[from];
    const int32_t first = first_[from], last = first + static_cast<int32_t>(start_[from + 1] - start_[from]) - 1;
    const auto at = [&](int32_t k) { return k < first || k > last ? NONE : before[k - first]; };
    for (int32_t k = low; k <= high; ++k) {
      if (k - 1 < first || k + 1 > last) {
        level[k - low] = std::min({std::max({at(k - 1) + 1, at(k) + 1, at(k + 1)}), n, m + k});
        continue;
      }
      const int32_t* around = before + (k - first);
      level[k - low] = std::min({std::max({around[-1] + 1, around[0] + 1, around[1]}), n, m + k});
    }
  }

  // Whether D[i][j] <= e.
  bool within(int64_t e, int64_t i, int64_t j) const {
    if (e < 0) return false;
    const int64_t k = i - j - first_[e];
    const size_t end = static_cast<size_t>(e) + 1 < start_.size() ? start_[e + 1] : reach_.size();
    return k >= 0 && start_[e] + k < end && i <= reach_[start_[e] + k];
  }

  static constexpr int32_t NONE = INT32_MIN / 2;
  std::vector<int32_t> reach_;
  std::vector<int32_t> first_;   // lowest diagonal of each level
  std::vector<size_t> start_;    // where each level begins in `reach_`
  int64_t distance_ = 0;
};

}  // namespace fgrl
