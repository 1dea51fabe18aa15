// Tokens of one pair renumbered densely, so that tables indexed by token stay small whatever the vocabulary.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fgrl {

// An open-addressing table, at most a quarter full.
template <typename Token>
class Remap {
  struct Slot {
    Token token;
    uint32_t number;  // 0: the slot is free, and its token 0
  };

  struct View {  // in local variables, which no store can alias
    Slot* slots;
    uint64_t mask;
    int shift;

    uint64_t home(Token token) const { return static_cast<uint64_t>(token) * 0x9e3779b97f4a7c15u >> shift; }

    // The slot of `token`, or the free one where it belongs.
    Slot& find(Token token) const {
      uint64_t at = home(token);
      // One branch, taken on collisions only: whether a slot is free or has the token is anybody's guess.
      while ((slots[at].number != 0) & (slots[at].token != token)) at = (at + 1) & mask;
      return slots[at];
    }
  };

 public:
  // Numbers the distinct `tokens` from 1 in order of first occurrence; returns how many there are.
  uint32_t number(const Token* tokens, int64_t size, uint32_t* ids) {
    int bits = 6;
    while ((int64_t{1} << bits) < 4 * size) ++bits;
    slots_.assign(size_t{1} << bits, Slot{0, 0});
    shift_ = 64 - bits;
    const View view = this->view();
    uint32_t count = 0;
    for (int64_t i = 0; i < size; ++i) {
      Slot& slot = view.find(tokens[i]);
      if (slot.number == 0) slot = {tokens[i], ++count};
      ids[i] = slot.number;
    }
    return count;
  }

  // The numbers of `tokens`, 0 for those that were not numbered.
  void look_up(const Token* tokens, int64_t size, uint32_t* ids) const {
    const View view = this->view();
    for (int64_t i = 0; i < size; ++i) {
      const Token token = tokens[i];
      const uint64_t at = view.home(token);
      const Slot first = view.slots[at], second = view.slots[(at + 1) & view.mask];
      // Which of the slots has the token is anybody's guess, so both are looked at without branching.
      const uint32_t here = first.token == token, next = second.token == token;
      uint32_t number = (first.number & (0 - here)) | (second.number & (0 - next));
      const uint32_t taken = first.number != 0, further = second.number & (0 - taken) & ((here | next) - 1);
      if (further != 0) number = view.find(token).number;
      ids[i] = number;
    }
  }

  size_t memory() const { return slots_.capacity() * sizeof(Slot); }

 private:
  View view() const { return {const_cast<Slot*>(slots_.data()), slots_.size() - 1, shift_}; }

  std::vector<Slot> slots_;
  int shift_ = 0;
};

}  // namespace fgrl
