// Tokens of one pair renumbered densely, so that tables indexed by token stay small whatever the vocabulary.
#pragma once

#include <cstdint>
#include <vector>

namespace fgrl {

// An open-addressing table. Numbers grow from one pair to the next, so that old entries are recognised by theirs and
// nothing needs to be cleared.
template <typename Token>
class Remap {
 public:
  // Numbers the distinct `tokens` from 1 in order of first occurrence; returns how many there are.
  uint32_t number(const Token* tokens, int64_t size, uint32_t* ids) {
    reset(size);
    uint32_t next = base_;
    for (int64_t i = 0; i < size; ++i) {
      Slot& slot = find(tokens[i]);
      if (slot.number <= base_) slot = {tokens[i], ++next};
      ids[i] = slot.number - base_;
    }
    used_ = next;
    return next - base_;
  }

  // The numbers of `tokens`, 0 for those that were not numbered.
  void look_up(const Token* tokens, int64_t size, uint32_t* ids) {
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t number = find(tokens[i]).number;
      ids[i] = number <= base_ ? 0 : number - base_;
    }
  }

 private:
  struct Slot {
    Token token;
    uint32_t number;
  };

  // Room for `size` distinct tokens in at most a quarter of the slots.
  void reset(int64_t size) {
    int bits = 6;
    while ((int64_t{1} << bits) < 4 * size) ++bits;
    base_ = used_;
    if (slots_.size() < size_t{1} << bits || UINT32_MAX - base_ < size) {
      slots_.assign(size_t{1} << bits, Slot{0, 0});
      base_ = 0;
    }
    shift_ = 64 - bits;
    mask_ = (uint64_t{1} << bits) - 1;
  }

  // The slot of `token`, or the free one where it belongs.
  Slot& find(Token token) {
    uint64_t at = static_cast<uint64_t>(token) * 0x9e3779b97f4a7c15u >> shift_;
    while (slots_[at].number > base_ && slots_[at].token != token) at = (at + 1) & mask_;
    return slots_[at];
  }

  std::vector<Slot> slots_;
  uint64_t mask_ = 0;
  uint32_t base_ = 0, used_ = 0;
  int shift_ = 0;
};

}  // namespace fgrl
