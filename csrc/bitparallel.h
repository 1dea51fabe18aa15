// Bit-parallel edit distance (Myers 1999, in Hyyro's formulation of 2003) that keeps what the trace-back reads.
//
// Row i of the table is bit (i - 1) % 64 of word (i - 1) / 64. One column step turns the vertical differences
// D[i][j-1] - D[i-1][j-1] in (+1: vp, -1: vn) into those of column j, 64 rows at a time. Two bits a cell are kept:
// `del`: a deletion lies on a cheapest path to (i, j) and a substitution does not; `ins`: the same of an insertion.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "trace.h"

namespace fgrl {

// Positions in `a` of every distinct token, for the match vector of one column.
template <typename Token>
class Occurrences {
 public:
  explicit Occurrences(Core<Token> a) : next_(a.size, -1) {
    first_.reserve(a.size);
    for (int64_t i = a.size - 1; i >= 0; --i) {
      const auto [entry, added] = first_.try_emplace(a.tokens[i], i);
      if (added) continue;
      next_[i] = entry->second;
      entry->second = i;
    }
  }

  template <typename Visit>
  void visit(Token token, Visit&& visit) const {
    const auto entry = first_.find(token);
    if (entry == first_.end()) return;
    for (int64_t i = entry->second; i >= 0; i = next_[i]) visit(i);
  }

 private:
  std::unordered_map<Token, int64_t> first_;
  std::vector<int64_t> next_;
};

// Aligns two non-empty cores; returns their distance. Time and memory are O(n m / 64).
template <typename Token>
int64_t align_bitparallel(Core<Token> a, Core<Token> b, int64_t prefix, const Labels& labels) {
  const int64_t words = (a.size + 63) / 64;
  const Occurrences<Token> occurrences(a);
  std::vector<uint64_t> vp(words, ~uint64_t{0}), vn(words, 0), match(words, 0);
  std::vector<uint64_t> deletions(words * b.size), insertions(words * b.size);
  const int last = (a.size - 1) % 64;
  int64_t distance = a.size;
  for (int64_t j = 0; j < b.size; ++j) {
    occurrences.visit(b.tokens[j], [&](int64_t i) { match[i / 64] |= uint64_t{1} << (i % 64); });
    uint64_t carry_p = 1, carry_n = 0;  // D[0][j] - D[0][j-1] is +1
    for (int64_t w = 0; w < words; ++w) {
      const uint64_t equal = match[w] | carry_n;
      const uint64_t d0 = (((equal & vp[w]) + vp[w]) ^ vp[w]) | equal | vn[w];
      const uint64_t hp = vn[w] | ~(d0 | vp[w]), hn = d0 & vp[w];
      const uint64_t hp_in = hp << 1 | carry_p, hn_in = hn << 1 | carry_n;
      insertions[j * words + w] = vn[w];
      carry_p = hp >> 63, carry_n = hn >> 63;
      if (w == words - 1) distance += static_cast<int64_t>(hp >> last & 1) - static_cast<int64_t>(hn >> last & 1);
      vp[w] = hn_in | ~(d0 | hp_in);
      vn[w] = hp_in & d0;
      deletions[j * words + w] = vp[w] & d0;
    }
    occurrences.visit(b.tokens[j], [&](int64_t i) { match[i / 64] = 0; });
  }
  trace_back(a, b, prefix, labels, [&](int64_t i, int64_t j) {
    const int64_t at = (j - 1) * words + (i - 1) / 64;
    const int bit = (i - 1) % 64;
    if (deletions[at] >> bit & 1) return DELETE;
    if (insertions[at] >> bit & 1) return INSERT;
    return a.tokens[i - 1] == b.tokens[j - 1] ? KEEP : SUBSTITUTE;
  });
  return distance;
}

}  // namespace fgrl
