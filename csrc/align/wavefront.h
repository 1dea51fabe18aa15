// Diagonal-transition alignment (Ukkonen 1985, Myers 1986) for small distances: from both ends at once, so that half of
// the d^2 cells of one wave suffice for distance d. Only token equality is used: no hashing.
//
// reach[e][k] of the forward wave is the largest i for which D[i][i - k] <= e. D does not fall along a diagonal, so
// D[i][j] <= e exactly when i <= reach[e][i - j], which is all that the trace-back asks. The backward wave is the same
// from the other end, with i counted from there; its diagonals keep their names. The distance is the first e + f where
// level e of one wave and level f of the other meet on a diagonal. From there the forward wave goes on only where a
// cheapest path may pass, which is where it meets what is left of the backward one; the trace-back asks about no cells
// elsewhere.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "align/equal_run.h"
#include "align/trace.h"

namespace fgrl {

class Wavefront {
 public:
  explicit Wavefront(EqualRun equal_run) : equal_run_(equal_run) {}

  // Measured nanoseconds for distance d.
  static double cost(double d) { return LINEAR * d + SQUARE * d * d; }
  static double distance_for(double cost) {
    return (std::sqrt(LINEAR * LINEAR + 4 * SQUARE * cost) - LINEAR) / (2 * SQUARE);
  }

  // Finds the distance if it is at most `limit`; gives up early when it seems that more than `budget` nanoseconds would
  // still be needed. Once it has found it, `align` may be called with the same cores.
  template <typename Token>
  bool search(Core<Token> a, Core<Token> b, int64_t limit, double budget) {
    const int32_t n = static_cast<int32_t>(a.size), goal = static_cast<int32_t>(a.size - b.size);
    forward_.clear();
    backward_.clear();
    if (limit < 0) return false;
    add_level<false>(a, b, forward_, limit);
    for (distance_ = 0; !meet(n, goal); ++distance_) {
      if (distance_ == limit || (distance_ % 8 == 7 && hopeless(a.size + b.size, goal, budget))) return false;
      // One wave alone while that is cheap: the other one has to begin with its own first levels.
      if (distance_ == ALONE) add_level<true>(a, b, backward_, limit);
      const bool forward = distance_ < ALONE || forward_.levels.size() <= backward_.levels.size();
      if (!(forward ? add_level<false>(a, b, forward_, limit) : add_level<true>(a, b, backward_, limit))) return false;
    }
    if (!backward_.levels.empty()) {
      narrow(n);
      while (static_cast<int64_t>(forward_.levels.size()) <= distance_) {
        add_level<false>(a, b, forward_, limit);
        narrow(n);
      }
    }
    return true;
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

  size_t memory() const { return forward_.memory() + backward_.memory(); }

 private:
  struct Range {
    int32_t low, high;  // diagonals
    int64_t at;         // where diagonal 0 is, or would be, in `reach`
  };

  struct Wave {
    std::vector<Range> levels;
    std::vector<int32_t> reach;

    void clear() {
      levels.clear();
      reach.clear();
    }
    size_t memory() const { return levels.capacity() * sizeof(Range) + reach.capacity() * sizeof(int32_t); }
  };

  // A level, its reach indexed by diagonal.
  struct Level {
    int32_t low, high;
    const int32_t* reach;
  };

  static Level level(const Wave& wave, size_t e) {
    return {wave.levels[e].low, wave.levels[e].high, wave.reach.data() + wave.levels[e].at};
  }
  static Level last(const Wave& wave) { return level(wave, wave.levels.size() - 1); }

  // Adds a level to a wave: takes one more edit everywhere and follows equal tokens. False if no diagonal is left.
  template <bool BACKWARD, typename Token>
  bool add_level(Core<Token> a, Core<Token> b, Wave& wave, int64_t limit) {
    const int32_t n = static_cast<int32_t>(a.size), m = static_cast<int32_t>(b.size);
    const bool first = wave.levels.empty();
    const int32_t goal = n - m, start = BACKWARD ? goal : 0, target = BACKWARD ? 0 : goal;
    int32_t low = start, high = start;
    if (!first) {
      // A diagonal further from the target than there are edits left is of no use.
      const int64_t left = limit - static_cast<int64_t>(wave.levels.size());
      low = std::max({wave.levels.back().low - 1, -m, static_cast<int32_t>(std::max<int64_t>(target - left, -m))});
      high = std::min({wave.levels.back().high + 1, n, static_cast<int32_t>(std::min<int64_t>(target + left, n))});
      if (low > high) return false;
    }
    // Two entries on either side that no path reaches spare the loop its special cases.
    const size_t begin = wave.reach.size();
    wave.reach.resize(begin + static_cast<size_t>(high - low + 1 + 2 * MARGIN));
    int32_t* const end = wave.reach.data() + wave.reach.size();
    std::fill_n(wave.reach.data() + begin, MARGIN, NONE);
    std::fill_n(end - MARGIN, MARGIN, NONE);
    wave.levels.push_back({low, high, static_cast<int64_t>(begin) + MARGIN - low});
    int32_t* const reach = wave.reach.data() + wave.levels.back().at;
    const int32_t* const before = first ? reach : level(wave, wave.levels.size() - 2).reach;
    // Level 0 begins as if it came from an insertion.
    int32_t below = !first ? before[low - 1] : BACKWARD ? 0 : NONE, same = !first ? before[low] : NONE;
    for (int32_t k = low; k <= high; ++k) {
      const int32_t above = !first ? before[k + 1] : BACKWARD ? NONE : 0;
      const int32_t last = BACKWARD ? std::min(n, n - k) : std::min(n, m + k);
      int32_t i = BACKWARD ? std::max(std::max(above, same) + 1, below) : std::max(std::max(below, same) + 1, above);
      if (i >= last) {
        i = last;
      } else if (!BACKWARD && a.tokens[i] == b.tokens[i - k]) {
        i += static_cast<int32_t>(equal_run_.prefix(a.tokens + i, b.tokens + i - k, last - i));
      } else if (BACKWARD && a.tokens[n - 1 - i] == b.tokens[n - 1 - i - k]) {
        i += static_cast<int32_t>(equal_run_.suffix(a.tokens + n - i, b.tokens + n - i - k, last - i));
      }
      reach[k] = i;
      below = same, same = above;
    }
    return true;
  }

  // Whether the last levels meet.
  bool meet(int32_t n, int32_t goal) const {
    const Level forward = last(forward_);
    if (backward_.levels.empty()) return forward.low <= goal && goal <= forward.high && forward.reach[goal] == n;
    const Level backward = last(backward_);
    int32_t met = 0;
    for (int32_t k = std::max(forward.low, backward.low); k <= std::min(forward.high, backward.high); ++k) {
      met |= forward.reach[k] + backward.reach[k] >= n;
    }
    return met != 0;
  }

  // Reduces the last forward level to the diagonals on which a cheapest path may pass.
  void narrow(int32_t n) {
    const size_t e = forward_.levels.size() - 1;
    const Level forward = last(forward_), backward = level(backward_, static_cast<size_t>(distance_) - e);
    int32_t low = std::max(forward.low, backward.low), high = std::min(forward.high, backward.high);
    while (low < high && forward.reach[low] + backward.reach[low] < n) ++low;
    while (low < high && forward.reach[high] + backward.reach[high] < n) --high;
    forward_.levels[e].low = low, forward_.levels[e].high = high;
  }

  // Whether going on costs more than the budget. The tokens passed per edit so far promise a distance, give or take a
  // standard deviation; what is spent is spent.
  bool hopeless(int64_t tokens, int32_t goal, double budget) const {
    int32_t ahead = 0, behind = 0;  // tokens passed, of both sides
    const Level forward = last(forward_);
    for (int32_t k = forward.low; k <= forward.high; ++k) {
      ahead = std::max(ahead, forward.reach[k] - k + forward.reach[k]);
    }
    if (!backward_.levels.empty()) {
      const Level backward = last(backward_);
      for (int32_t k = backward.low; k <= backward.high; ++k) {
        behind = std::max(behind, backward.reach[k] - goal + k + backward.reach[k]);
      }
    }
    const double passed = static_cast<double>(ahead) + behind;
    const double e = static_cast<double>(distance_ + 1);
    const double promised = e * static_cast<double>(tokens) / (passed + 1) * (1 - 1 / std::sqrt(e));
    return promised > e && cost(promised) - cost(e) > budget;
  }

  // Whether D[i][j] <= e, for a cell on a cheapest path.
  bool within(int64_t e, int64_t i, int64_t j) const {
    if (e < 0) return false;
    const Range& range = forward_.levels[e];
    const int64_t k = i - j;
    return k >= range.low && k <= range.high && i <= forward_.reach[range.at + k];
  }

  static constexpr double LINEAR = 45, SQUARE = 0.8;
  static constexpr int32_t NONE = INT32_MIN / 2;
  static constexpr int32_t MARGIN = 2;
  static constexpr int64_t ALONE = 16;
  EqualRun equal_run_;
  Wave forward_, backward_;
  int64_t distance_ = 0;
};

}  // namespace fgrl
