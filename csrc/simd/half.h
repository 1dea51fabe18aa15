// The 16-bit floating-point formats, which are only stored: `half.inc` widens them to float and rounds back.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fgrl {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

// What elements of type E are computed in.
template <typename E>
using Compute = std::conditional_t<std::is_same_v<E, double>, double, float>;

// The order of columns in which the kernels of this processor have what they keep beside a row of E: see `Parts`.
template <typename E>
struct ColumnOrder {
  static constexpr int64_t PARTS = sizeof(Compute<E>) / sizeof(E), LONGEST_STEP = 32;
  int64_t lanes;

  int64_t index(int64_t column) const {
    const int64_t in_step = column & (PARTS * lanes - 1);
    return column - in_step + in_step % PARTS * lanes + in_step / PARTS;
  }
};

}  // namespace fgrl
