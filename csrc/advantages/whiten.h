// Whitening (fgrl/reference/whiten.py): the moments of the valid advantages, and advantages shifted and scaled by given
// moments. Torch-free. Tokens are worked on in blocks of one size, so that nothing depends on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tensors/rows.h"
#include "simd/vector.h"

namespace fgrl {

constexpr int64_t WHITEN_BLOCK = 4096;
constexpr double VARIANCE_FLOOR = 1e-8;

// What moments make of an advantage A: (A - mean) * scale.
struct Whitening {
  double mean, scale;

  // With Bessel's correction; a NaN among the moments stays one.
  explicit Whitening(const double* moments) {
    const double count = moments[0], total = moments[1];
    mean = total / std::max(count, 1.0);
    const double variance = (moments[2] - total * mean) / std::max(count - 1, 1.0);
    scale = 1 / std::sqrt((variance < 0 ? 0 : variance) + VARIANCE_FLOOR);
  }
};

#define FGRL_KERNEL_FILE "advantages/whiten.inc"
#include "simd/for_each_isa.inc"

// Adds up one block, at most WHITEN_BLOCK tokens from `begin`: count, sum and sum of squares.
template <typename T>
void block_moments(const T* advantages, const TokenMask& mask, int64_t begin, int64_t end, double* moments) {
  uint8_t scratch[WHITEN_BLOCK];
  FGRL_DISPATCH(dense_moments, T)(advantages + begin, mask.bytes(begin, end, scratch), end - begin, moments);
}

template <typename T>
void block_whiten(const T* advantages, const TokenMask& mask, int64_t begin, int64_t end, const Whitening& by, T* out) {
  uint8_t scratch[WHITEN_BLOCK];
  FGRL_DISPATCH(dense_whiten, T)(advantages + begin, mask.bytes(begin, end, scratch), end - begin, by, out + begin);
}

}  // namespace fgrl
