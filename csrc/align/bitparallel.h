// Bit-parallel alignment for large distances: O(n m / 64) time, and memory that stays small for any length.
//
// The table is cut into tiles, one strip of rows by BLOCK columns. A first pass keeps only what crosses tile borders:
// the vertical differences at every BLOCK-th column and the horizontal ones between strips, two bits each. The
// trace-back then recomputes the tiles that the path enters, this time keeping two bits a cell. A pair that fits in
// one tile needs no first pass.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "align/labels.h"
#include "align/remap.h"
#include "align/strip.h"
#include "align/trace.h"

namespace fgrl {

template <typename Token>
class BitParallel {
 public:
  explicit BitParallel(Isa isa) : isa_(isa) {}

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
    walk_back(swapped ? ~uint64_t{0} : 0);
    const TokenSets row_sets{kept_rows_.data(), substituted_rows_.data()};
    const TokenSets column_sets{kept_columns_.data(), substituted_columns_.data()};
    return write_path(isa_, a, b, prefix, labels, swapped ? column_sets : row_sets, swapped ? row_sets : column_sets);
  }

  size_t memory() const {
    const size_t words = match_.capacity() + borders_p_.capacity() + borders_n_.capacity() + edges_p_.capacity() +
                         edges_n_.capacity() + moves_.capacity();
    return 8 * words + remap_.memory();
  }

 private:
  static constexpr int64_t BLOCK = 1024;

  // Finds the path, a word of rows after the other.
  void walk_back(uint64_t right_first) {
    const int64_t words = (rows() + 63) / 64;
    kept_rows_.assign(words, 0);
    substituted_rows_.assign(words, 0);
    kept_columns_.assign(border_words_, 0);
    substituted_columns_.assign(border_words_, 0);
    Walk walk{};
    walk.stride = 3 * runner_.lanes, walk.plane = runner_.lanes, walk.right_first = right_first;
    walk.left = ~uint64_t{0} >> (64 * words - rows());
    walk.outside = walk.left ^ walk.left >> 1;
    walk.column = columns() - 1;
    int64_t first_word = words, first_column = columns();  // of the loaded tile: none yet
    for (int64_t word = words - 1; word >= 0 && walk.column >= 0;) {
      if (word < first_word || walk.column < first_column) {
        load_moves(word, walk.column);
        first_word = word - word % runner_.lanes, first_column = walk.column - walk.column % BLOCK;
      }
      const int64_t lane = word - first_word, group = walk.column / 64;
      walk.stop = std::max(64 * group, first_column);
      walk.moves = moves_.data() + (walk.column - first_column + lane * runner_.skew) * walk.stride + lane;
      walk.kept_rows = walk.substituted_rows = walk.kept_columns = walk.substituted_columns = 0;
      runner_.walk(walk);
      kept_rows_[word] |= walk.kept_rows, substituted_rows_[word] |= walk.substituted_rows;
      kept_columns_[group] |= walk.kept_columns, substituted_columns_[group] |= walk.substituted_columns;
      if (walk.left == 0) {
        --word;
        walk.left = ~uint64_t{0};
        walk.outside = walk.kept << 63;
        walk.kept = 0;
      }
    }
  }

  int64_t rows() const { return static_cast<int64_t>(row_ids_.size()); }
  int64_t columns() const { return static_cast<int64_t>(column_ids_.size()); }

  // The first pass, over every tile but the last, which the trace-back computes anyway.
  void prepare() {
    runner_ = FGRL_FOR_ISA(isa_, strip_runner)(rows());
    strips_ = (rows() + 64 * runner_.lanes - 1) / (64 * runner_.lanes);
    blocks_ = (columns() + BLOCK - 1) / BLOCK;
    border_words_ = (columns() + 63) / 64;
    borders_p_.assign(border_words_, ~uint64_t{0});  // above the first row D grows by one a column
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
      std::fill_n(edge_p, runner_.lanes, ~uint64_t{0});  // left of the first column D grows by one a row
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
  void load_moves(int64_t word, int64_t column) {
    const int64_t strip = word / runner_.lanes, block = column / BLOCK;
    if (strip != loaded_strip_) load_strip(strip);
    Strip run = tile(strip, block, column + 1);
    run.vp = edges_p_.data() + (strip * blocks_ + block) * runner_.lanes;
    run.vn = edges_n_.data() + (strip * blocks_ + block) * runner_.lanes;
    moves_.resize((BLOCK + runner_.lanes) * 3 * runner_.lanes);
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
    if (strips_ == 1) {
      std::iota(symbol_.begin(), symbol_.end(), 0);
      count = symbols_;
    } else {
      for_rows(strip, [&](int64_t row, int64_t) {
        uint32_t& symbol = symbol_[row_ids_[row]];
        if (symbol == 0) symbol = ++count;
      });
    }
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

  Isa isa_;
  StripRunner runner_{};
  Remap<Token> remap_;
  std::vector<uint32_t> row_ids_, column_ids_;     // token numbers of both sides
  std::vector<uint32_t> symbol_;                   // token number -> entry of `match_`
  std::vector<uint64_t> match_;                    // [entries][lanes] of the loaded strip
  std::vector<uint64_t> borders_p_, borders_n_;    // [strips][words]: horizontal differences above each strip
  std::vector<uint64_t> edges_p_, edges_n_;        // [strips][blocks][lanes]: vertical differences left of each tile
  std::vector<uint64_t> moves_;                    // of the loaded tile
  std::vector<uint64_t> kept_rows_, substituted_rows_, kept_columns_, substituted_columns_;  // the path, a bit a token
  int64_t strips_ = 0, blocks_ = 0, border_words_ = 0, loaded_strip_ = -1;
  uint32_t symbols_ = 0;
};

}  // namespace fgrl
