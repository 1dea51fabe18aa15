// The inner loop of the bit-parallel alignment: one strip of rows over a range of columns. This is the plain version;
// strip_x86.h has the vector ones.
//
// Row r of the strip is bit r % 64 of word r / 64. A step turns the vertical differences of column j - 1 (`vp`: +1,
// `vn`: -1) into those of column j, 64 rows at a time (Myers 1999, as formulated by Hyyro 2003), given the words'
// match vectors and the horizontal differences that enter from the word above.
#pragma once

#include <cstdint>

namespace fgrl {

struct Strip {
  const uint64_t* match;   // [entries][lanes]: rows where each symbol of the strip stands; entry 0 is empty
  const uint32_t* symbol;  // token number -> entry of `match`
  const uint32_t* tokens;  // token number of each column
  int64_t begin, end;      // columns to run; `begin` is a multiple of 64
  uint64_t *vp, *vn;       // [lanes] vertical differences, updated
  const uint64_t *hp_in, *hn_in;  // horizontal differences above the strip, one bit a column
  uint64_t *hp_out, *hn_out;      // the same below it, or null
  uint64_t* moves;                // two bits a cell for the trace-back, or null: see below
};

// `moves` says of each cell whether stepping back one row (first bit), or one column (second bit), lies on a cheapest
// path while the diagonal step at the cost of an edit does not. The words of column `begin + c` and lane l are
// moves[t][0][l] and moves[t][1][l], of [][2][lanes], with t = c in the plain version and t = c + l in vector versions.

template <int LANES>
void run_strip_baseline(const Strip& s) {
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
        s.moves[(j - s.begin) * 2 * LANES + w] = s.vp[w] & d0;
        s.moves[(j - s.begin) * 2 * LANES + LANES + w] = vn;
      }
    }
    out_p |= carry_p << (j % 64), out_n |= carry_n << (j % 64);
    if (s.hp_out && (j % 64 == 63 || j + 1 == s.end)) s.hp_out[j / 64] = out_p, s.hn_out[j / 64] = out_n;
    if (j % 64 == 63) out_p = out_n = 0;
  }
}

using RunStrip = void (*)(const Strip&);

}  // namespace fgrl
