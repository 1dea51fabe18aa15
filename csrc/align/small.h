// Bit-parallel alignment of short pairs, several side by side in the lanes of a vector. Match vectors come from
// comparing every row with the column's token, no hashing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "align/bits.h"
#include "align/labels.h"
#include "align/strip.h"
#include "align/trace.h"

namespace fgrl {

constexpr int SMALL_WORDS = 4, SMALL_LANES = 16;
constexpr int64_t SMALL_ROWS = 64 * SMALL_WORDS, SMALL_COLUMNS = 512;

// How many vectors of lanes run side by side.
constexpr int small_halves(int words) { return words <= 2 ? 2 : 1; }

// Pairs with the same number of words of rows, as the loops see them.
struct SmallGroup {
  int words = 0;
  int64_t longest = 0;                                   // columns of the pair with most of them
  std::vector<uint64_t> match;                           // [column][word][lane]: rows equal to the column's token
  uint64_t rows[SMALL_WORDS][SMALL_LANES] = {};          // the lowest n bits, for n rows
  uint64_t columns[SMALL_LANES] = {};                    // how many there are
  uint64_t right_first[SMALL_LANES] = {};                // all bits where the rows are the edited side
  uint64_t kept_rows[SMALL_WORDS][SMALL_LANES] = {}, substituted_rows[SMALL_WORDS][SMALL_LANES] = {};
  uint8_t kept_columns[2][SMALL_COLUMNS] = {}, substituted_columns[2][SMALL_COLUMNS] = {};  // a bit a lane of each half
};

#define FGRL_KERNEL_FILE "align/small.inc"
#include "simd/for_each_isa.inc"

// Aligns cores of at most SMALL_ROWS by SMALL_COLUMNS tokens whose ids fit 32 bits, as many at once as there are lanes.
template <typename Token>
class Small {
 public:
  explicit Small(Isa isa) : isa_(isa), vector_(FGRL_FOR_ISA(isa, COUNT)) {}

  // Takes a pair to be aligned by the time `finish` returns; false if it is not one for this class.
  bool add(Core<Token> a, Core<Token> b, int64_t prefix, const Labels& labels, int64_t* distance) {
#ifndef FGRL_X86
    return false;  // comparing every row with every column pays with these vectors only
#endif
    const bool swapped = b.size < a.size;
    const Core<Token> rows = swapped ? b : a, columns = swapped ? a : b;
    if (rows.size > SMALL_ROWS || columns.size > SMALL_COLUMNS) return false;
    if (!copy(rows, rows_) || !copy(columns, columns_)) return false;
    const int words = static_cast<int>((rows.size + 63) / 64);
    Bucket& bucket = buckets_[words - 1];
    SmallGroup& group = bucket.group;
    const int lanes = vector_ * small_halves(words), lane = bucket.used++;
    bucket.pairs[lane] = {a, b, prefix, labels, distance};
    group.words = words;
    group.longest = std::max(group.longest, columns.size);
    for (int w = 0; w < words; ++w) {
      const int64_t above = 64 * (w + 1) - rows.size;
      group.rows[w][lane] = ~uint64_t{0} >> std::max<int64_t>(above, 0);
    }
    group.columns[lane] = static_cast<uint64_t>(columns.size);
    group.right_first[lane] = swapped ? ~uint64_t{0} : 0;
    const size_t step = static_cast<size_t>(words * lanes);
    const size_t size = static_cast<size_t>(columns.size) * step;
    if (group.match.size() < size) group.match.resize(size);
    const auto match_rows = FGRL_FOR_ISA(isa_, match_rows);
    for (int64_t row = 0; row < rows.size; row += 32) {  // the lower half of a word comes first in memory
      char* const match = reinterpret_cast<char*>(group.match.data() + row / 64 * lanes + lane) + row % 64 / 8;
      match_rows(rows_ + row, columns_, columns.size, match, static_cast<int64_t>(8 * step));
    }
    if (bucket.used == lanes) run(bucket);
    return true;
  }

  void finish() {
    for (Bucket& bucket : buckets_) {
      if (bucket.used > 0) run(bucket);
    }
  }

 private:
  struct Pair {
    Core<Token> a, b;
    int64_t prefix;
    Labels labels;
    int64_t* distance;
  };

  struct Bucket {
    int used = 0;
    Pair pairs[SMALL_LANES];
    SmallGroup group;
  };

  void run(Bucket& bucket) {
    const int words = bucket.group.words;
    const size_t size = static_cast<size_t>(bucket.group.longest * 2 * words * vector_ * small_halves(words));
    if (moves_.size() < size) moves_.resize(size);
    FGRL_FOR_ISA(isa_, run_group)(bucket.group, moves_.data());
    for (int lane = 0; lane < bucket.used; ++lane) *bucket.pairs[lane].distance = write(bucket, lane);
    bucket.used = 0;
    bucket.group.longest = 0;
    std::fill_n(bucket.group.columns, SMALL_LANES, 0);
  }

  // Writes the labels of a pair; returns its distance.
  int64_t write(const Bucket& bucket, int lane) const {
    const Pair& pair = bucket.pairs[lane];
    const SmallGroup& group = bucket.group;
    uint64_t kept_rows[SMALL_WORDS], substituted_rows[SMALL_WORDS];
    for (int w = 0; w < group.words; ++w) {
      kept_rows[w] = group.kept_rows[w][lane], substituted_rows[w] = group.substituted_rows[w][lane];
    }
    uint64_t kept_columns[SMALL_COLUMNS / 64], substituted_columns[SMALL_COLUMNS / 64];
    const int64_t columns = static_cast<int64_t>(group.columns[lane]);
    const int half = lane / vector_, bit = lane % vector_;
    for (int64_t j = 0; j < columns; j += 64) {
      const uint64_t inside = ~uint64_t{0} >> std::max<int64_t>(j + 64 - columns, 0);
      kept_columns[j / 64] = lane_bits(group.kept_columns[half] + j, bit) & inside;
      substituted_columns[j / 64] = lane_bits(group.substituted_columns[half] + j, bit) & inside;
    }
    const TokenSets rows{kept_rows, substituted_rows}, across{kept_columns, substituted_columns};
    const bool swapped = group.right_first[lane] != 0;
    return write_path(isa_, pair.a, pair.b, pair.prefix, pair.labels, swapped ? across : rows, swapped ? rows : across);
  }

  // Bit `bit` of each of 64 bytes.
  static uint64_t lane_bits(const uint8_t* bytes, int bit) {
    uint64_t bits = 0;
    for (int at = 0; at < 64; at += 8) {
      const uint64_t single = read_word(bytes + at) >> bit & 0x0101010101010101u;
      bits |= single * 0x0102040810204080u >> 56 << at;
    }
    return bits;
  }

  static bool copy(Core<Token> from, int32_t* to) {
    Token lost = 0;
    for (int64_t i = 0; i < from.size; ++i) {
      to[i] = static_cast<int32_t>(from.tokens[i]);
      lost |= to[i] ^ from.tokens[i];
    }
    return lost == 0;
  }

  Bucket buckets_[SMALL_WORDS];
  std::vector<uint64_t> moves_;
  int32_t rows_[SMALL_ROWS] = {};  // rows past the last hold old tokens; their bits affect no lower row
  int32_t columns_[SMALL_COLUMNS];
  Isa isa_;
  int vector_;  // lanes of a vector
};

}  // namespace fgrl
