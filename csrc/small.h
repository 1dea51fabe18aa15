// Bit-parallel alignment of short pairs: match vectors by comparing every row with the column's token, no hashing.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "strip_x86.h"
#include "trace.h"

namespace fgrl {

constexpr int SMALL_WORDS = 4;
constexpr int64_t SMALL_ROWS = 64 * SMALL_WORDS, SMALL_COLUMNS = 512;

#ifdef FGRL_X86

namespace sse2 {
// Bit r: rows[r] equals `token`.
static FGRL_INLINE uint64_t match_word(const int32_t* rows, int32_t token) {
  const __m128i wanted = _mm_set1_epi32(token);
  const auto same = [&](int at) {
    return _mm_cmpeq_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + at)), wanted);
  };
  uint64_t word = 0;
  for (int at = 0; at < 64; at += 16) {
    const __m128i low = _mm_packs_epi32(same(at), same(at + 4)), high = _mm_packs_epi32(same(at + 8), same(at + 12));
    word |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(low, high)))) << at;
  }
  return word;
}
#include "small_loop.inc"
}  // namespace sse2

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw")
#endif
namespace avx512 {
static FGRL_INLINE uint64_t match_word(const int32_t* rows, int32_t token) {
  const __m512i wanted = _mm512_set1_epi32(token);
  const auto same = [&](int at) { return _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(rows + at), wanted); };
  return _mm512_kunpackd(_mm512_kunpackw(same(48), same(32)), _mm512_kunpackw(same(16), same(0)));
}
#include "small_loop.inc"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

// Aligns cores of at most SMALL_ROWS by SMALL_COLUMNS tokens whose ids fit 32 bits.
class Small {
 public:
  explicit Small(Cpu cpu) : cpu_(cpu) {}

  // Whether `align` can take these cores; keeps a copy of them.
  template <typename Token>
  bool accept(Core<Token> a, Core<Token> b) {
#ifdef FGRL_X86
    const bool swapped = b.size < a.size;
    const Core<Token> rows = swapped ? b : a, columns = swapped ? a : b;
    if (rows.size > SMALL_ROWS || columns.size > SMALL_COLUMNS) return false;
    words_ = static_cast<int>((rows.size + 63) / 64);
    return copy(rows, rows_) && copy(columns, columns_);
#else
    (void)a, (void)b;
    return false;
#endif
  }

  // Returns the distance.
  template <typename Token>
  int64_t align(Core<Token> a, Core<Token> b, int64_t prefix, const Labels& labels) {
    const bool swapped = b.size < a.size;
    moves_.resize(SMALL_COLUMNS * 2 * SMALL_WORDS);
#ifdef FGRL_X86
    const auto run = cpu_ == Cpu::AVX512 ? avx512::run_small : sse2::run_small;
    run(rows_, columns_, swapped ? a.size : b.size, moves_.data(), words_);
#endif
    return swapped ? trace<true>(a, b, prefix, labels) : trace<false>(a, b, prefix, labels);
  }

 private:
  template <bool SWAPPED, typename Token>
  int64_t trace(Core<Token> a, Core<Token> b, int64_t prefix, const Labels& labels) const {
    constexpr unsigned DOWN = SWAPPED ? MAY_INSERT : MAY_DELETE, RIGHT = SWAPPED ? MAY_DELETE : MAY_INSERT;
    const uint64_t* const moves = moves_.data();
    const int64_t words = words_;
    return trace_back(a, b, prefix, labels, [moves, words](int64_t i, int64_t j) {
      const int64_t row = (SWAPPED ? j : i) - 1, column = (SWAPPED ? i : j) - 1;
      const uint64_t* at = moves + column * 2 * words + row / 64;
      return static_cast<unsigned>(at[0] >> (row % 64) & 1) * DOWN |
             static_cast<unsigned>(at[words] >> (row % 64) & 1) * RIGHT;
    });
  }

  template <typename Token>
  static bool copy(Core<Token> from, int32_t* to) {
    Token lost = 0;
    for (int64_t i = 0; i < from.size; ++i) {
      to[i] = static_cast<int32_t>(from.tokens[i]);
      lost |= to[i] ^ from.tokens[i];
    }
    return lost == 0;
  }

  Cpu cpu_;
  int words_ = 0;
  int32_t rows_[SMALL_ROWS] = {};  // rows past the last hold old tokens; their bits affect no lower row
  int32_t columns_[SMALL_COLUMNS];
  std::vector<uint64_t> moves_;
};

}  // namespace fgrl
