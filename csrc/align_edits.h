// Batched token-level edit alignment over packed sequences. Torch-free: pointers and lengths only.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <vector>

#include "bitparallel.h"
#include "trace.h"

namespace fgrl {

// One side of a batch: sequence i is tokens[cu_seqlens[i] .. cu_seqlens[i + 1]).
template <typename Token>
struct Packed {
  const Token* tokens;
  const int64_t* cu_seqlens;

  Core<Token> operator[](int64_t i) const { return {tokens + cu_seqlens[i], cu_seqlens[i + 1] - cu_seqlens[i]}; }
};

// Aligns one pair; the labels must be KEEP on entry. Returns the distance.
template <typename Token>
int64_t align_pair(Core<Token> a, Core<Token> b, Labels labels) {
  const int64_t shorter = std::min(a.size, b.size);
  int64_t suffix = 0, prefix = 0;
  while (suffix < shorter && a.tokens[a.size - 1 - suffix] == b.tokens[b.size - 1 - suffix]) ++suffix;
  while (prefix < shorter - suffix && a.tokens[prefix] == b.tokens[prefix]) ++prefix;
  a = {a.tokens + prefix, a.size - prefix - suffix};
  b = {b.tokens + prefix, b.size - prefix - suffix};
  labels = {labels.original + prefix, labels.edited + prefix};
  if (a.size > 0 && b.size > 0) return align_bitparallel(a, b, prefix, labels);
  trace_back(a, b, prefix, labels, [](int64_t, int64_t) { return KEEP; });  // one side is empty: never asked
  return a.size + b.size;
}

// Aligns `batch` pairs, the ones with most work first. `parallel(tasks, f)` calls f() `tasks` times, on as many threads
// as it likes. The labels must be KEEP on entry.
template <typename Token, typename Parallel>
void align_batch(Packed<Token> original, Packed<Token> edited, int64_t batch, int64_t num_threads, int64_t* distance,
                 uint8_t* original_ops, uint8_t* edited_ops, Parallel&& parallel) {
  std::vector<int64_t> order(batch);
  std::iota(order.begin(), order.end(), 0);
  const auto work = [&](int64_t pair) {
    return static_cast<double>(original[pair].size) * static_cast<double>(edited[pair].size);
  };
  if (num_threads > 1) {
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return work(x) > work(y); });
  }
  std::atomic<int64_t> next{0};
  parallel(std::min(num_threads, batch), [&] {
    for (int64_t at = next++; at < batch; at = next++) {
      const int64_t pair = order[at];
      const Labels labels{original_ops + original.cu_seqlens[pair], edited_ops + edited.cu_seqlens[pair]};
      distance[pair] = align_pair(original[pair], edited[pair], labels);
    }
  });
}

}  // namespace fgrl
