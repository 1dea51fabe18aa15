// The canonical edit alignment: which of the cheapest alignments is reported, and how it becomes labels.
//
// Let D[i][j] be the Levenshtein distance of a[:i] and b[:j]. Walk back from (n, m) to (0, 0):
//   1. outside a run of edits, equal tokens are kept;
//   2. otherwise take the first of these moves that lies on a cheapest path: substitute, delete, insert; it continues
//      the run, or opens one;
//   3. where there is none (the tokens are equal), keep them, which ends the run.
// Rule 1 moves edits as far left as they go; rule 2 extends a run rather than open another. Both look only at the
// neighbours of (i, j), so every algorithm that knows D around the path gives the same labels.
//
// A run that covers p tokens of a and q of b costs max(p, q): its first min(p, q) tokens on each side are labelled
// SUBSTITUTE, the rest DELETE or INSERT. No pair so substituted is equal, or a cheaper path would exist.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "align/equal_run.h"

namespace fgrl {

enum EditOp : uint8_t { KEEP = 0, SUBSTITUTE = 1, DELETE = 2, INSERT = 3 };

// One side of a pair without its common prefix and suffix: tokens[-prefix .. size + suffix) may be read.
template <typename Token>
struct Core {
  const Token* tokens;
  int64_t size;

  // Asks for the last tokens, which are compared first.
  void prefetch_end() const {
    const char* const end = reinterpret_cast<const char*>(tokens + size);
    for (int64_t at = std::min<int64_t>(size * sizeof(Token), 4096); at > 0; at -= 64) prefetch(end - at);
  }
};

// Fills without a call, since most runs are a few tokens long.
inline void fill(uint8_t* to, int64_t size, uint8_t value) {
  if (size <= 0) return;
  if (size < 4) {
    to[0] = to[size / 2] = to[size - 1] = value;
  } else if (size <= 8) {
    const uint32_t four = value * 0x01010101u;
    std::memcpy(to, &four, 4);
    std::memcpy(to + size - 4, &four, 4);
  } else {
    std::memset(to, value, static_cast<size_t>(size));
  }
}

// Where labels go, both filled with KEEP beforehand, indexed as the cores are.
struct Labels {
  uint8_t* original;
  uint8_t* edited;

  // Labels one run of edits; returns its cost.
  int64_t run(int64_t i1, int64_t i2, int64_t j1, int64_t j2) const {
    const int64_t p = i2 - i1, q = j2 - j1, both = p < q ? p : q;
    fill(original + i1, both, SUBSTITUTE);
    fill(edited + j1, both, SUBSTITUTE);
    fill(original + i1 + both, p - both, DELETE);
    fill(edited + j1 + both, q - both, INSERT);
    return p + q - both;
  }
};

// The moves of rule 2 other than a substitution, as bits: whether deleting, or inserting, lies on a cheapest path to a
// cell while substituting does not.
constexpr unsigned MAY_DELETE = 1, MAY_INSERT = 2;

// Walks the path, writes its labels and returns its cost, the distance. `moves(i, j)` gives the bits of a cell with
// 0 < i <= n and 0 < j <= m. The common prefix takes part: a run that reaches its end from outside slides left through
// it, exactly as if it had not been stripped.
template <typename Token, typename Moves>
int64_t trace_back(const EqualRun& equal_run, Core<Token> a, Core<Token> b, int64_t prefix, const Labels& labels,
                   Moves&& moves) {
  int64_t i = a.size, j = b.size, distance = 0;
  while (i > 0 && j > 0) {
    // Most stretches of kept tokens are either a few tokens long or many.
    int64_t kept = 0;
    const int64_t limit = i < j ? i : j;
    while (kept < limit && a.tokens[i - 1 - kept] == b.tokens[j - 1 - kept]) {
      if (++kept < 8) continue;
      kept += equal_run.suffix(a.tokens + i - kept, b.tokens + j - kept, limit - kept);
      break;
    }
    i -= kept, j -= kept;
    if (i == 0 || j == 0) break;
    const int64_t run_i = i, run_j = j;
    bool ends = false;
    do {
      const unsigned bits = moves(i, j);
      if (bits == 0) {
        ends = a.tokens[i - 1] == b.tokens[j - 1];
        if (ends) break;
        --i, --j;
      } else if (bits & MAY_DELETE) {
        --i;
      } else {
        --j;
      }
    } while (i > 0 && j > 0);
    if (!ends) i = j = 0;  // the run goes on along the border
    distance += labels.run(i, run_i, j, run_j);
  }
  while (i != j && i > -prefix && j > -prefix && a.tokens[i - 1] == b.tokens[j - 1]) --i, --j;
  // What is left of one side is a prefix of what is left of the other: the rest of the longer one is edited.
  const int64_t edge = i < j ? i : j;
  return distance + labels.run(edge, i, edge, j);
}

}  // namespace fgrl
