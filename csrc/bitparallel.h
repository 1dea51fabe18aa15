// Bit-parallel alignment for large distances: O(n m / 64) time, and memory that stays small for any length.
//
// The table is cut into tiles, one strip of rows by BLOCK columns. A first pass keeps only what crosses tile borders:
// the vertical differences at every BLOCK-th column and the horizontal ones between strips, two bits each. The
// trace-back then recomputes the tiles that the path enters, this time keeping two bits a cell. A pair that fits in
// one tile needs no first pass.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "remap.h"
#include "strip_x86.h"
#include "trace.h"

namespace fgrl {

template <typename Token>
class BitParallel {
 public:
  explicit BitParallel(Cpu cpu) : cpu_(cpu), equal_run_(cpu) {}

  // Aligns two non-empty cores; returns their distance.
  int64_t align(Core<Token> a, Core<Token> b, int64_t prefix, const Labels& labels) {
    // The shorter side makes the rows, so that fewer of a strip's rows are empty.
    const bool swapped = b.size < a.size;
    const Core<Token> rows = swapped ? b : a, columns = swapped ? a : b;
    row_ids_.resize(rows.size);
    column_ids_.resize(columns.size);
    symbols_ = remap_.number(rows.tokens, rows.size, row_ids_.data());
    remap_.look_up(columns.tokens, columns.size, column_ids_.data());
    prepare();
    return swapped ? trace<true>(a, b, prefix, labels) : trace<false>(a, b, prefix, labels);
  }

 private:
  static constexpr int64_t BLOCK = 1024;

  template <bool SWAPPED>
  int64_t trace(Core<Token> a, Core<Token> b, int64_t prefix, const Labels& labels) {
    constexpr unsigned DOWN = SWAPPED ? MAY_INSERT : MAY_DELETE, RIGHT = SWAPPED ? MAY_DELETE : MAY_INSERT;
    const int64_t lanes = runner_.lanes, skew = runner_.skew;
    int64_t first_row = rows(), first_column = columns();  // of the loaded tile: none yet
    const uint64_t* tile_moves = nullptr;
    return trace_back(equal_run_, a, b, prefix, labels, [&](int64_t i, int64_t j) {
      const int64_t row = (SWAPPED ? j : i) - 1, column = (SWAPPED ? i : j) - 1;
      if (row < first_row || column < first_column) {
        load_moves(row, column);
        first_row = row - row % (64 * lanes), first_column = column - column % BLOCK;
        tile_moves = moves_.data();
      }
      const int64_t lane = (row - first_row) / 64, t = column - first_column + lane * skew;
      const uint64_t* at = tile_moves + t * 2 * lanes + lane;
      return static_cast<unsigned>(at[0] >> (row % 64) & 1) * DOWN |
             static_cast<unsigned>(at[lanes] >> (row % 64) & 1) * RIGHT;
    });
  }

  int64_t rows() const { return static_cast<int64_t>(row_ids_.size()); }
  int64_t columns() const { return static_cast<int64_t>(column_ids_.size()); }

  // The first pass, over every tile but the last, which the trace-back computes anyway.
  void prepare() {
    runner_ = strip_runner(cpu_, rows());
    strips_ = (rows() + 64 * runner_.lanes - 1) / (64 * runner_.lanes);
    blocks_ = (columns() + BLOCK - 1) / BLOCK;
    border_words_ = (columns() + 63) / 64;
    borders_p_.assign(border_words_, ~uint64_t{0});  // above the first row D rises with every column
    borders_n_.assign(border_words_, 0);
    borders_p_.resize(strips_ * border_words_);
    borders_n_.resize(strips_ * border_words_);
    edges_p_.resize(strips_ * blocks_ * runner_.lanes);
    edges_n_.resize(strips_ * blocks_ * runner_.lanes);
    symbol_.assign(symbols_ + 1, 0);
    loaded_strip_ = -1;
    for (int64_t strip = 0; strip < strips_; ++strip) {
      uint64_t* edge_p = edges_p_.data() + strip * blocks_ * runner_.lanes;
      uint64_t* edge_n = edges_n_.data() + strip * blocks_ * runner_.lanes;
      std::fill_n(edge_p, runner_.lanes, ~uint64_t{0});  // left of the first column D rises with every row
      std::fill_n(edge_n, runner_.lanes, 0);
      const bool last = strip + 1 == strips_;
      if (last && blocks_ == 1) break;
      load_strip(strip);
      uint64_t vp[8], vn[8];
      std::fill_n(vp, runner_.lanes, ~uint64_t{0});
      std::fill_n(vn, runner_.lanes, 0);
      for (int64_t block = 0; block + last < blocks_; ++block) {
        Strip run = tile(strip, block, std::min((block + 1) * BLOCK, columns()));
        run.vp = vp, run.vn = vn;
        if (!last) {
          run.hp_out = borders_p_.data() + (strip + 1) * border_words_;
          run.hn_out = borders_n_.data() + (strip + 1) * border_words_;
        }
        runner_.run(run);
        if (block + 1 == blocks_) break;
        std::copy_n(vp, runner_.lanes, edge_p + (block + 1) * runner_.lanes);
        std::copy_n(vn, runner_.lanes, edge_n + (block + 1) * runner_.lanes);
      }
    }
  }

  // Computes the moves of the tile around a cell, as far as that cell's column: the path only goes left and up.
  void load_moves(int64_t row, int64_t column) {
    const int64_t strip = row / (64 * runner_.lanes), block = column / BLOCK;
    if (strip != loaded_strip_) load_strip(strip);
    Strip run = tile(strip, block, column + 1);
    run.vp = edges_p_.data() + (strip * blocks_ + block) * runner_.lanes;
    run.vn = edges_n_.data() + (strip * blocks_ + block) * runner_.lanes;
    moves_.resize((BLOCK + runner_.lanes) * 2 * runner_.lanes);
    run.moves = moves_.data();
    runner_.run(run);
  }

  // Makes the match vectors of one strip.
  void load_strip(int64_t strip) {
    if (loaded_strip_ >= 0) {
      for_rows(loaded_strip_, [&](int64_t row, int64_t) { symbol_[row_ids_[row]] = 0; });
    }
    loaded_strip_ = strip;
    uint32_t count = 0;
    for_rows(strip, [&](int64_t row, int64_t) {
      uint32_t& symbol = symbol_[row_ids_[row]];
      if (symbol == 0) symbol = ++count;
    });
    match_.assign((count + 1) * runner_.lanes, 0);
    for_rows(strip, [&](int64_t row, int64_t at) {
      match_[symbol_[row_ids_[row]] * runner_.lanes + at / 64] |= uint64_t{1} << (at % 64);
    });
  }

  template <typename Visit>
  void for_rows(int64_t strip, Visit&& visit) const {
    const int64_t begin = strip * 64 * runner_.lanes, end = std::min(begin + 64 * runner_.lanes, rows());
    for (int64_t row = begin; row < end; ++row) visit(row, row - begin);
  }

  Strip tile(int64_t strip, int64_t block, int64_t end) const {
    Strip run{};
    run.match = match_.data();
    run.symbol = symbol_.data();
    run.tokens = column_ids_.data();
    run.begin = block * BLOCK;
    run.end = end;
    run.hp_in = borders_p_.data() + strip * border_words_;
    run.hn_in = borders_n_.data() + strip * border_words_;
    return run;
  }

  Cpu cpu_;
  EqualRun equal_run_;
  StripRunner runner_{};
  Remap<Token> remap_;
  std::vector<uint32_t> row_ids_, column_ids_;     // token numbers of both sides
  std::vector<uint32_t> symbol_;                   // token number -> entry of `match_`
  std::vector<uint64_t> match_;                    // [entries][lanes] of the loaded strip
  std::vector<uint64_t> borders_p_, borders_n_;    // [strips][words]: horizontal differences above each strip
  std::vector<uint64_t> edges_p_, edges_n_;        // [strips][blocks][lanes]: vertical differences left of each tile
  std::vector<uint64_t> moves_;                    // of the loaded tile
  int64_t strips_ = 0, blocks_ = 0, border_words_ = 0, loaded_strip_ = -1;
  uint32_t symbols_ = 0;
};

}  // namespace fgrl
