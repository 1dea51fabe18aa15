// Lengths of equal stretches of two token sequences, by vector compares. Tokens of either width are compared as 32-bit
// words.
#pragma once

#include <cstdint>
#include <cstring>

#include "align/bits.h"
#include "simd/isa.h"

namespace fgrl {

inline uint64_t read_word(const void* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// Reading backward, long sequences come from memory faster when they are asked for this many bytes ahead.
constexpr int64_t PREFETCH_BYTES = 2048;

inline void prefetch(const char* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at);
#endif
}

#define FGRL_KERNEL_FILE "align/equal_run.inc"
#include "simd/for_each_isa.inc"

// The compares for one instruction set.
class EqualRun {
 public:
  explicit EqualRun([[maybe_unused]] Isa isa)
      : prefix_(FGRL_FOR_ISA(isa, equal_prefix)), suffix_(FGRL_FOR_ISA(isa, equal_suffix)) {}

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

  Run prefix_, suffix_;
};

}  // namespace fgrl
