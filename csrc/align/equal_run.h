// Lengths of equal stretches of two token sequences, by vector compares. Tokens of either width are compared as 32-bit
// words.
#pragma once

#include <cstdint>
#include <cstring>

#include "align/bits.h"
#include "simd/cpu.h"

namespace fgrl {

inline uint64_t read_word(const void* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// Reading backward, long sequences come from memory faster when they are asked for this many bytes ahead.
constexpr int64_t AHEAD = 2048;

inline void prefetch(const char* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at);
#endif
}

namespace baseline {
inline uint64_t difference(const char* a, const char* b) { return read_word(a) ^ read_word(b); }

inline int64_t equal_prefix(const char* a, const char* b, int64_t words) {
  int64_t i = 0;
  for (; i + 2 <= words; i += 2) {
    const uint64_t different = difference(a + 4 * i, b + 4 * i);
    if (different != 0) return i + trailing_zeros(different) / 32;
  }
  return i < words && std::memcmp(a + 4 * i, b + 4 * i, 4) == 0 ? words : i;
}

inline int64_t equal_suffix(const char* a, const char* b, int64_t words) {
  int64_t i = 0;
  for (; i + 2 <= words; i += 2) {
    const uint64_t different = difference(a - 4 * i - 8, b - 4 * i - 8);
    if (different != 0) return i + leading_zeros(different) / 32;
  }
  return i < words && std::memcmp(a - 4 * i - 4, b - 4 * i - 4, 4) == 0 ? words : i;
}
}  // namespace baseline

#ifdef FGRL_X86

FGRL_TARGET(FGRL_AVX2)
namespace avx2 {
// Bit k: the words k differ.
static FGRL_INLINE uint32_t differences(const char* a, const char* b) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
  const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(x, y)))) ^ 0xff;
}

static int64_t equal_prefix(const char* a, const char* b, int64_t words) {
  int64_t i = 0;
  for (; i + 8 <= words; i += 8) {
    if (const uint32_t different = differences(a + 4 * i, b + 4 * i)) return i + trailing_zeros(different);
  }
  return i + baseline::equal_prefix(a + 4 * i, b + 4 * i, words - i);
}

static int64_t equal_suffix(const char* a, const char* b, int64_t words) {
  int64_t i = 0;
  for (; i + 8 <= words; i += 8) {
    prefetch(a - 4 * i - AHEAD);
    prefetch(b - 4 * i - AHEAD);
    if (const uint32_t different = differences(a - 4 * i - 32, b - 4 * i - 32)) {
      return i + leading_zeros(uint64_t{different} << 56);
    }
  }
  return i + baseline::equal_suffix(a - 4 * i, b - 4 * i, words - i);
}
}  // namespace avx2
FGRL_TARGET_END

FGRL_TARGET(FGRL_AVX512)
namespace avx512 {
static FGRL_INLINE uint32_t differences(const char* a, const char* b, uint32_t valid) {
  const __mmask16 mask = static_cast<__mmask16>(valid);
  return _mm512_mask_cmpneq_epi32_mask(mask, _mm512_maskz_loadu_epi32(mask, a), _mm512_maskz_loadu_epi32(mask, b));
}

static int64_t equal_prefix(const char* a, const char* b, int64_t words) {
  for (int64_t i = 0; i < words; i += 16) {
    const uint32_t valid = words - i < 16 ? (1u << (words - i)) - 1 : 0xffffu;
    if (const uint32_t different = differences(a + 4 * i, b + 4 * i, valid)) return i + trailing_zeros(different);
  }
  return words;
}

static int64_t equal_suffix(const char* a, const char* b, int64_t words) {
  for (int64_t i = 0; i < words; i += 16) {
    const uint32_t valid = words - i < 16 ? 0xffffu << (16 - (words - i)) : 0xffffu;
    prefetch(a - 4 * i - AHEAD);
    prefetch(b - 4 * i - AHEAD);
    if (const uint32_t different = differences(a - 4 * i - 64, b - 4 * i - 64, valid)) {
      return i + leading_zeros(uint64_t{different} << 48);
    }
  }
  return words;
}
}  // namespace avx512
FGRL_TARGET_END

#endif

// The compares for one instruction set.
class EqualRun {
 public:
  explicit EqualRun(Cpu cpu) {
    (void)cpu;
#ifdef FGRL_X86
    if (cpu == Cpu::AVX2) prefix_ = avx2::equal_prefix, suffix_ = avx2::equal_suffix;
    if (cpu == Cpu::AVX512) prefix_ = avx512::equal_prefix, suffix_ = avx512::equal_suffix;
#endif
  }

  // How many of the first `limit` tokens agree.
  template <typename Token>
  int64_t prefix(const Token* a, const Token* b, int64_t limit) const {
    return run<Token>(prefix_, a, b, limit);
  }

  // How many of the last `limit` tokens before `a_end` and `b_end` agree.
  template <typename Token>
  int64_t suffix(const Token* a_end, const Token* b_end, int64_t limit) const {
    return run<Token>(suffix_, a_end, b_end, limit);
  }

 private:
  using Run = int64_t (*)(const char*, const char*, int64_t);

  template <typename Token>
  static int64_t run(Run run, const Token* a, const Token* b, int64_t limit) {
    constexpr int64_t WORDS = sizeof(Token) / 4;
    return run(reinterpret_cast<const char*>(a), reinterpret_cast<const char*>(b), WORDS * limit) / WORDS;
  }

  Run prefix_ = baseline::equal_prefix, suffix_ = baseline::equal_suffix;
};

}  // namespace fgrl
