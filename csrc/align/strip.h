// The inner loop of the bit-parallel alignment: one strip of rows over a range of columns. Here is the plain version;
// strip.inc has the vector ones.
//
// Row r of the strip is bit r % 64 of word r / 64. A step turns the vertical differences of column j - 1 (`vp`: +1,
// `vn`: -1) into those of column j, 64 rows at a time (Myers 1999, as formulated by Hyyro 2003), given the words'
// match vectors and the horizontal differences that enter from the word above.
#pragma once

#include <cstdint>

#include "align/bits.h"
#include "simd/isa.h"

namespace fgrl {

struct Strip {
  const uint64_t* match;   // [entries][lanes]: rows where each symbol of the strip stands; entry 0 is empty
  const uint32_t* symbol;  // token number -> entry of `match`
  const uint32_t* tokens;  // token number of each column
  int64_t begin, end;      // columns to run; `begin` is a multiple of 64
  uint64_t *vp, *vn;       // [lanes] vertical differences, updated
  const uint64_t *hp_in, *hn_in;  // horizontal differences above the strip, one bit a column
  uint64_t *hp_out, *hn_out;      // the same below it, or null
  uint64_t* moves;                // three bits a cell for the way back, or null: see below
};

// `moves` says of each cell whether stepping back one row (first bit), or one column (second bit), lies on a cheapest
// path while the diagonal step at the cost of an edit does not; and whether its tokens are equal (third bit). Column
// `begin + c` of lane l is in moves[t][0..2][l], of [][3][lanes], with t = c in the plain version and t = c + l in the
// vector versions.

template <int LANES>
void run_strip_words(const Strip& s) {
  uint64_t out_p = 0, out_n = 0;
  for (int64_t j = s.begin; j < s.end; ++j) {
    uint64_t carry_p = s.hp_in[j / 64] >> (j % 64) & 1, carry_n = s.hn_in[j / 64] >> (j % 64) & 1;
    const uint64_t* match = s.match + static_cast<int64_t>(s.symbol[s.tokens[j]]) * LANES;
    for (int w = 0; w < LANES; ++w) {
      const uint64_t vp = s.vp[w], vn = s.vn[w];
      const uint64_t equal = match[w] | carry_n;
      const uint64_t d0 = (((equal & vp) + vp) ^ vp) | equal | vn;
      const uint64_t hp = vn | ~(d0 | vp), hn = d0 & vp;
      const uint64_t hp_in = hp << 1 | carry_p, hn_in = hn << 1 | carry_n;
      carry_p = hp >> 63, carry_n = hn >> 63;
      s.vp[w] = hn_in | ~(d0 | hp_in);
      s.vn[w] = hp_in & d0;
      if (s.moves) {
        uint64_t* const moves = s.moves + (j - s.begin) * 3 * LANES + w;
        moves[0] = s.vp[w] & d0, moves[LANES] = vn, moves[2 * LANES] = match[w];
      }
    }
    out_p |= carry_p << (j % 64), out_n |= carry_n << (j % 64);
    if (s.hp_out && (j % 64 == 63 || j + 1 == s.end)) s.hp_out[j / 64] = out_p, s.hn_out[j / 64] = out_n;
    if (j % 64 == 63) out_p = out_n = 0;
  }
}

// The way back through one word of rows. Rows are sets of bits, so that no branch depends on where the path goes.
struct Walk {
  const uint64_t* moves;   // of `column`; `stride` words for a column, `plane` for a bit of the cells
  int64_t stride, plane;
  int64_t column, stop;    // the next column, and the last one to go to
  uint64_t right_first;    // all bits where the rows are the edited side: then the columns' tokens are deleted first
  uint64_t left;           // rows not yet consumed, the current one on top
  uint64_t outside, kept;  // the current row, when it is outside a run of edits; the row that the last column kept
  uint64_t kept_rows, substituted_rows, kept_columns, substituted_columns;
};

// Goes on until the rows of the word or the columns are consumed.
FGRL_KERNEL void walk_columns(Walk& walk) {
  Walk z = walk;
  for (; z.column >= z.stop; --z.column, z.moves -= z.stride) {
    const uint64_t right = z.moves[z.plane], equal = z.moves[2 * z.plane], keeps = equal & z.outside;
    const uint64_t down = z.moves[0] & ~(right & z.right_first);
    z.left = all_below(z.left & (~down | keeps));
    if (z.left == 0) break;  // the column goes on in the word above
    const uint64_t diagonal = (z.left ^ z.left >> 1) & (~right | keeps), substituted = diagonal & ~equal;
    z.kept = diagonal & equal;
    z.outside = z.kept >> 1;
    z.left ^= diagonal;
    z.kept_rows |= z.kept, z.substituted_rows |= substituted;
    z.kept_columns |= static_cast<uint64_t>(z.kept != 0) << (z.column % 64);
    z.substituted_columns |= static_cast<uint64_t>(substituted != 0) << (z.column % 64);
  }
  walk = z;
}

// How to run a strip on one instruction set.
struct StripRunner {
  void (*run)(const Strip&);
  void (*walk)(Walk&);
  int lanes;
  int skew;
};

#define FGRL_KERNEL_FILE "align/strip.inc"
#include "simd/for_each_isa.inc"

}  // namespace fgrl
