// The floating-point formats that the vectors of `vector.inc` hold.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "simd/isa.h"

namespace fgrl {

template <typename T>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  using Int = int32_t;
  using Uint = uint32_t;
  static constexpr int MANTISSA = 23, BIAS = 127, EXP_TERMS = 7;
  static constexpr float ROUNDER = 12582912.0f;                               // 1.5 * 2^23
  static constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;  // n * LN2_HIGH is exact
  static constexpr float EXP_LIMIT = 88.7228317f, EXP_FLOOR = -86.0f;
};

template <>
struct FloatFormat<double> {
  using Int = int64_t;
  using Uint = uint64_t;
  static constexpr int MANTISSA = 52, BIAS = 1023, EXP_TERMS = 13;
  static constexpr double ROUNDER = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double LN2_HIGH = 6.93147180369123816490e-01, LN2_LOW = 1.90821492927058770002e-10;
  static constexpr double EXP_LIMIT = 709.78271289338397, EXP_FLOOR = -707.0;
};

}  // namespace fgrl
