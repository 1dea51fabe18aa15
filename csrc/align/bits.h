// Bit counts of 64-bit words, for which C++17 has no names.
#pragma once

#include <cstdint>

#include "simd/isa.h"

namespace fgrl {

// 64 for 0.
FGRL_KERNEL int64_t leading_zeros(uint64_t word) {
#if defined(__GNUC__)
  return word == 0 ? 64 : __builtin_clzll(word);
#else
  int64_t count = 64;
  for (; word != 0; word >>= 1) --count;
  return count;
#endif
}

// 64 for 0.
FGRL_KERNEL int64_t trailing_zeros(uint64_t word) { return 64 - leading_zeros(~word & (word - 1)); }

// Not the compiler's, which is a call of a function where the instruction cannot be assumed.
inline int64_t count_bits(uint64_t word) {
  word -= word >> 1 & 0x5555555555555555u;
  word = (word & 0x3333333333333333u) + (word >> 2 & 0x3333333333333333u);
  return static_cast<int64_t>(((word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
}

// All bits up to the highest that is set.
FGRL_KERNEL uint64_t all_below(uint64_t word) {
  return word == 0 ? 0 : ~uint64_t{0} >> leading_zeros(word);
}

}  // namespace fgrl
