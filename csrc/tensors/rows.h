// Masks of any dtype, and the sequences of a batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace fgrl {

// A mask of 0 and 1 of any dtype, in a contiguous array. Without data, everything is valid.
struct TokenMask {
  const void* data = nullptr;
  int element_size = 1;
  bool floating = false;  // then -0.0 is 0

  // The entries [begin, end) as bytes, 0 where masked; in `scratch` unless they are bytes already.
  const uint8_t* bytes(int64_t begin, int64_t end, uint8_t* scratch) const {
    if (data == nullptr) return nullptr;
    if (element_size == 1) return static_cast<const uint8_t*>(data) + begin;
    if (element_size == 2) convert<uint16_t>(begin, end, scratch);
    if (element_size == 4) convert<uint32_t>(begin, end, scratch);
    if (element_size == 8) convert<uint64_t>(begin, end, scratch);
    return scratch;
  }

 private:
  template <typename Bits>
  void convert(int64_t begin, int64_t end, uint8_t* out) const {
    const Bits* from = static_cast<const Bits*>(data);
    const Bits relevant = floating ? static_cast<Bits>(~Bits{0} >> 1) : static_cast<Bits>(~Bits{0});
    for (int64_t i = begin; i < end; ++i) out[i - begin] = (from[i] & relevant) != 0;
  }
};

inline int64_t count_valid(const uint8_t* mask, int64_t size) {
  int64_t count = 0;
  for (int64_t begin = 0; begin < size; begin += 128) {  // a byte counts that far
    uint8_t block = 0;
    const int64_t end = std::min(size, begin + 128);
    for (int64_t i = begin; i < end; ++i) block = static_cast<uint8_t>(block + (mask[i] != 0));
    count += block;
  }
  return count;
}

inline int64_t trailing_zeros(const uint8_t* mask, int64_t size) {
  int64_t last = size;
  for (uint64_t word = 0; last >= 8; last -= 8) {
    std::memcpy(&word, mask + last - 8, 8);
    if (word != 0) break;
  }
  while (last > 0 && mask[last - 1] == 0) --last;
  return size - last;
}

// Valid tokens next to each other.
struct TokenRun {
  int64_t begin, end;
};

// The first token from `i` on that is masked, or the first that is not.
inline int64_t next_token(const uint8_t* mask, int64_t i, int64_t size, bool masked) {
  constexpr uint64_t ONES = 0x0101010101010101, HIGH_BITS = 0x8080808080808080;
  for (uint64_t word; i + 8 <= size; i += 8) {
    std::memcpy(&word, mask + i, 8);
    if (masked ? ((word - ONES) & ~word & HIGH_BITS) != 0 : word != 0) break;  // a byte is 0, or one is not
  }
  while (i < size && (mask[i] == 0) != masked) ++i;
  return i;
}

inline void find_runs(const uint8_t* mask, int64_t size, std::vector<TokenRun>& runs) {
  runs.clear();
  for (int64_t end = 0;;) {
    const int64_t begin = next_token(mask, end, size, false);
    if (begin == size) return;
    end = next_token(mask, begin, size, true);
    runs.push_back({begin, end});
  }
}

// The tokens of the runs, one run behind the other.
template <typename T>
inline void bring_together(const T* in, const std::vector<TokenRun>& runs, T* out) {
  for (const TokenRun& run : runs) out = std::copy_n(in + run.begin, run.end - run.begin, out);
}

// The reverse, with 0 between them.
template <typename T>
inline void spread(const T* in, const std::vector<TokenRun>& runs, T* out) {
  int64_t end = runs.front().begin;
  for (const TokenRun& run : runs) {
    std::fill(out + end, out + run.begin, T(0));
    std::copy_n(in, run.end - run.begin, out + run.begin);
    in += run.end - run.begin, end = run.end;
  }
}

// Where the sequences are: rows of one length, or offsets of either integer width.
struct Sequences {
  int64_t count = 0;
  int64_t length = 0;
  const void* cu_seqlens = nullptr;
  bool wide = false;

  int64_t begin(int64_t i) const {
    if (cu_seqlens == nullptr) return i * length;
    return wide ? static_cast<const int64_t*>(cu_seqlens)[i] : static_cast<const int32_t*>(cu_seqlens)[i];
  }
  int64_t end(int64_t i) const { return begin(i + 1); }

  // The first sequence that ends after the token.
  int64_t at(int64_t token) const {
    if (cu_seqlens == nullptr) return token / length;
    int64_t low = 0, high = count - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (end(middle) > token) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
};

}  // namespace fgrl
