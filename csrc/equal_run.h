// Lengths of equal stretches of two token sequences, compared eight bytes at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace fgrl {

inline uint64_t read_word(const void* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// How many of the first `limit` tokens agree.
template <typename Token>
int64_t equal_prefix(const Token* a, const Token* b, int64_t limit) {
  constexpr int64_t STEP = 32 / sizeof(Token);
  int64_t i = 0;
  for (; i + STEP <= limit; i += STEP) {
    uint64_t difference = 0;
    for (int64_t at = 0; at < STEP; at += 8 / sizeof(Token)) difference |= read_word(a + i + at) ^ read_word(b + i + at);
    if (difference != 0) break;
  }
  while (i < limit && a[i] == b[i]) ++i;
  return i;
}

// How many of the last `limit` tokens before `a_end` and `b_end` agree.
template <typename Token>
int64_t equal_suffix(const Token* a_end, const Token* b_end, int64_t limit) {
  constexpr int64_t STEP = 32 / sizeof(Token);
  int64_t i = 0;
  for (; i + STEP <= limit; i += STEP) {
    const Token *a = a_end - i - STEP, *b = b_end - i - STEP;
    uint64_t difference = 0;
    for (int64_t at = 0; at < STEP; at += 8 / sizeof(Token)) difference |= read_word(a + at) ^ read_word(b + at);
    if (difference != 0) break;
  }
  while (i < limit && a_end[-1 - i] == b_end[-1 - i]) ++i;
  return i;
}

}  // namespace fgrl
