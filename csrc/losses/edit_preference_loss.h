// The edited-token Bradley-Terry loss of one pair: two passes over its rewards, of which the second finds them in the
// cache. Torch-free.
//
// With U the edited tokens of a side and K the kept ones of both (fgrl/reference/edit_preference_loss.py):
//
//     S = sum of r_t over U, or their mean;  x = S_chosen - S_rejected - margin
//     loss = -log sigmoid(x) + unchanged_weight * mean of r_t^2 over K
//     d loss / d r_t = -+ sigmoid(-x) (over the tokens of U, for a mean) in U,  2 * unchanged_weight * r_t / |K| in K
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tensors/rows.h"

namespace fgrl {

// One side of the batch, contiguous rows of `width` tokens.
template <typename T>
struct EditSide {
  const T* rewards;
  TokenMask edits, mask;
  int64_t width;
  T* rewards_grad;  // or null
};

// Sums over one row.
struct EditSums {
  double score = 0, squares = 0;
  int64_t edited = 0, kept = 0;
};

// The tokens of one row that are edited and those that are kept, as bytes.
struct EditFlags {
  std::vector<uint8_t> edited, kept, scratch;

  template <typename T>
  void read(const EditSide<T>& side, int64_t row) {
    const int64_t width = side.width, begin = row * width, end = begin + width;
    for (auto* bytes : {&edited, &kept, &scratch}) bytes->resize(static_cast<size_t>(width));
    const uint8_t* mask = side.mask.bytes(begin, end, scratch.data());
    if (mask == nullptr) std::fill(scratch.begin(), scratch.end(), uint8_t{1}), mask = scratch.data();
    const uint8_t* edits = side.edits.bytes(begin, end, edited.data());
    uint8_t *const edited_ = edited.data(), *const kept_ = kept.data();
    for (int64_t t = 0; t < width; ++t) {
      const bool is_valid = mask[t] != 0, is_edited = edits[t] != 0;
      edited_[t] = is_valid & is_edited, kept_[t] = is_valid & !is_edited;
    }
  }
};

}  // namespace fgrl
