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

}  // namespace fgrl
