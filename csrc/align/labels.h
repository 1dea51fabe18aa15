// From the path to labels: a side of a pair as sets of its kept and of its substituted tokens, one bit a token.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "align/bits.h"
#include "align/trace.h"
#include "simd/isa.h"

namespace fgrl {

// The kept and the substituted ones among the tokens of one side, a bit each; the rest are edits of that side alone.
struct TokenSets {
  const uint64_t* kept;
  uint64_t* substituted;
};

// The bits of word `word` that stand for positions in [begin, end), some of which are in it.
inline uint64_t bits_between(int64_t word, int64_t begin, int64_t end) {
  const int64_t low = std::max<int64_t>(begin - 64 * word, 0), above = std::max<int64_t>(64 * word + 64 - end, 0);
  return ~uint64_t{0} << low & ~uint64_t{0} >> above;
}

// In every run of edits, substitutions come first. The path may have them in any order; being a cheapest one it has,
// besides them, edits of one side only in any run, so that the run's labels are those of as many pairs.
inline void order_runs(const TokenSets& sets, int64_t size) {
  const int64_t words = (size + 63) / 64;
  for (int64_t word = 0; word < words; ++word) {
    const uint64_t next = word + 1 < words ? sets.substituted[word + 1] << 63 : 0;
    uint64_t wrong = ~(sets.kept[word] | sets.substituted[word]) & (sets.substituted[word] >> 1 | next);
    while (wrong != 0) {
      const int64_t at = trailing_zeros(wrong);
      int64_t first = word, last = word;
      uint64_t before = sets.kept[word] & ((uint64_t{1} << at) - 1), after = sets.kept[word] >> at << at;
      while (before == 0 && first > 0) before = sets.kept[--first];
      while (after == 0 && last + 1 < words) after = sets.kept[++last];
      const int64_t begin = 64 * first + 64 - leading_zeros(before);
      const int64_t end = 64 * last + trailing_zeros(after);
      int64_t count = 0;
      for (int64_t w = begin / 64; 64 * w < end; ++w) {
        count += count_bits(sets.substituted[w] & bits_between(w, begin, end));
      }
      for (int64_t w = begin / 64; 64 * w < end; ++w) {
        const uint64_t run = bits_between(w, begin, end);
        const uint64_t head = begin + count > 64 * w ? run & bits_between(w, begin, begin + count) : 0;
        sets.substituted[w] = (sets.substituted[w] & ~run) | head;
      }
      wrong &= ~bits_between(word, begin, end);
    }
  }
}

// The bits of `byte` as bytes of 0 and 1.
inline uint64_t spread(uint64_t byte) {
  const uint64_t single = byte * 0x0101010101010101u & 0x8040201008040201u;
  return ((single + 0x7f7f7f7f7f7f7f7fu) | single) >> 7 & 0x0101010101010101u;
}

#define FGRL_KERNEL_FILE "align/labels.inc"
#include "simd/for_each_isa.inc"

// How many tokens come before the first kept one.
inline int64_t first_kept(const TokenSets& sets, int64_t size) {
  int64_t word = 0;
  while (sets.kept[word] == 0) {
    if (64 * ++word >= size) return size;
  }
  return 64 * word + trailing_zeros(sets.kept[word]);
}

// Labels one side; `other` is DELETE or INSERT.
inline void write_side(Isa isa, const TokenSets& sets, int64_t size, EditOp other, uint8_t* labels) {
  order_runs(sets, size);
  FGRL_FOR_ISA(isa, expand)(sets, size, other, labels);
}

// Labels both sides of a pair of non-empty cores by a path; returns its cost, the distance.
template <typename Token>
int64_t write_path(Isa isa, Core<Token> a, Core<Token> b, int64_t prefix, const Labels& labels,
                   const TokenSets& original, const TokenSets& edited) {
  write_side(isa, original, a.size, DELETE, labels.original);
  write_side(isa, edited, b.size, INSERT, labels.edited);
  int64_t saved = 0;
  for (int64_t word = 0; 64 * word < a.size; ++word) {
    saved += 2 * count_bits(original.kept[word]) + count_bits(original.substituted[word]);
  }
  // What is left of one side alone before the first kept token slides left through the common prefix.
  const int64_t i = first_kept(original, a.size), j = first_kept(edited, b.size);
  if ((i == 0) != (j == 0)) {
    int64_t slid = 0;
    while (slid < prefix && a.tokens[i - 1 - slid] == b.tokens[j - 1 - slid]) ++slid;
    if (slid > 0) {
      uint8_t* const side = j == 0 ? labels.original : labels.edited;
      std::memset(side, KEEP, static_cast<size_t>(i + j));
      std::memset(side - slid, j == 0 ? DELETE : INSERT, static_cast<size_t>(i + j));
    }
  }
  return a.size + b.size - saved;
}

}  // namespace fgrl
