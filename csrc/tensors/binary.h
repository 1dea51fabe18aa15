// Whether an array holds nothing but 0 and 1: the check of a mask that is not bool, in one read.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fgrl {

template <typename T>
bool is_binary(const T* values, int64_t size) {
  constexpr int64_t BLOCK = 4096;  // without a branch inside, so that it becomes vector code
  for (int64_t begin = 0; begin < size; begin += BLOCK) {
    const int64_t end = std::min(size, begin + BLOCK);
    unsigned other = 0;
    for (int64_t i = begin; i < end; ++i) other |= static_cast<unsigned>(values[i] != T(0)) & (values[i] != T(1));
    if (other) return false;
  }
  return true;
}

}  // namespace fgrl
