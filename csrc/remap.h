// Tokens of one pair renumbered densely, so that tables indexed by token stay small whatever the vocabulary.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fgrl {

// An open-addressing table. Numbers grow from one pair to the next, so that old entries are recognised by theirs and
// nothing needs to be cleared.
template <typename Token>
class Remap {
  struct Slot {
    Token token;
    uint32_t number;
  };

  struct View {  // in local variables, which no store can alias
    Slot* slots;
    uint64_t mask;
    uint32_t base;
    int shift;

    uint64_t home(Token token) const { return static_cast<uint64_t>(token) * 0x9e3779b97f4a7c15u >> shift; }

    // The slot of `token`, or the free one where it belongs.
    Slot& find(Token token) const {
      uint64_t at = home(token);
      // One branch, taken on collisions only: whether a slot is free or has the token is anybody's guess.
      while ((slots[at].number > base) & (slots[at].token != token)) at = (at + 1) & mask;
      return slots[at];
    }
  };

 public:
  // Numbers the distinct `tokens` from 1 in order of first occurrence; returns how many there are.
  uint32_t number(const Token* tokens, int64_t size, uint32_t* ids) {
    reset(size);
    const View view{slots_.data(), mask_, base_, shift_};
    uint32_t next = view.base;
    for (int64_t i = 0; i < size; ++i) {
      Slot& slot = view.find(tokens[i]);
      if (slot.number <= view.base) slot = {tokens[i], ++next};
      ids[i] = slot.number - view.base;
    }
    used_ = next;
    return next - view.base;
  }

  // The numbers of `tokens`, 0 for those that were not numbered.
  void look_up(const Token* tokens, int64_t size, uint32_t* ids) {
    const View view{slots_.data(), mask_, base_, shift_};
    for (int64_t i = 0; i < size; ++i) {
      const uint64_t at = view.home(tokens[i]);
      const Slot first = view.slots[at], second = view.slots[(at + 1) & view.mask];
      const bool first_taken = first.number > view.base, second_taken = second.number > view.base;
      const bool here = first_taken & (first.token == tokens[i]), next = second_taken & (second.token == tokens[i]);
      // Whether a slot is free or has the token is anybody's guess, so both are looked at without branching.
      uint32_t number = here ? first.number : (first_taken & next) ? second.number : view.base;
      if (first_taken & !here & second_taken & !next) number = std::max(view.find(tokens[i]).number, view.base);
      ids[i] = number - view.base;
    }
  }

 private:
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

  std::vector<Slot> slots_;
  uint64_t mask_ = 0;
  uint32_t base_ = 0, used_ = 0;
  int shift_ = 0;
};

}  // namespace fgrl
