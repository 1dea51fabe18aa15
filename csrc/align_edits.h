// Batched token-level edit alignment over packed sequences. Torch-free: pointers and lengths only.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "bitparallel.h"
#include "equal_run.h"
#include "small.h"
#include "trace.h"
#include "wavefront.h"

namespace fgrl {

// One side of a batch: sequence i is tokens[cu_seqlens[i] .. cu_seqlens[i + 1]).
template <typename Token>
struct Packed {
  const Token* tokens;
  const int64_t* cu_seqlens;

  Core<Token> operator[](int64_t i) const { return {tokens + cu_seqlens[i], cu_seqlens[i + 1] - cu_seqlens[i]}; }
};

enum class Algorithm { AUTO = 0, WAVEFRONT = 1, BIT_PARALLEL = 2, SMALL = 3 };

// What a caller may force; the labels are the same whatever it is.
struct Path {
  Algorithm algorithm = Algorithm::AUTO;
  Cpu cpu = Cpu::AUTO;
};

// Aligns pairs one after another, reusing its memory.
template <typename Token>
class Aligner {
 public:
  explicit Aligner(Path path) : path_(path), small_(usable_cpu(path.cpu)), bit_parallel_(usable_cpu(path.cpu)) {}

  // Aligns one pair; the labels must be KEEP on entry. Returns the distance.
  int64_t align(Core<Token> a, Core<Token> b, Labels labels) {
    const int64_t shorter = std::min(a.size, b.size);
    const int64_t suffix = equal_suffix(a.tokens + a.size, b.tokens + b.size, shorter);
    if (suffix == a.size && suffix == b.size) return 0;
    const int64_t prefix = equal_prefix(a.tokens, b.tokens, shorter - suffix);
    a = {a.tokens + prefix, a.size - prefix - suffix};
    b = {b.tokens + prefix, b.size - prefix - suffix};
    labels = {labels.original + prefix, labels.edited + prefix};
    if (a.size == 0 || b.size == 0) {
      return trace_back(a, b, prefix, labels, [](int64_t, int64_t) { return 0u; });  // never asked
    }
    if (wavefront_.search(a, b, wavefront_limit(a.size, b.size))) return wavefront_.align(a, b, prefix, labels);
    if (path_.algorithm != Algorithm::BIT_PARALLEL && small_.accept(a, b)) return small_.align(a, b, prefix, labels);
    return bit_parallel_.align(a, b, prefix, labels);
  }

 private:
  // The distance up to which the wavefront is tried.
  int64_t wavefront_limit(int64_t n, int64_t m) const {
    if (path_.algorithm == Algorithm::BIT_PARALLEL || path_.algorithm == Algorithm::SMALL) return -1;
    if (path_.algorithm == Algorithm::WAVEFRONT) return n + m;
    return static_cast<int64_t>(std::sqrt(static_cast<double>(n) * static_cast<double>(m)) / 16) + 4;
  }

  Path path_;
  Wavefront wavefront_;
  Small small_;
  BitParallel<Token> bit_parallel_;
};

// Aligns `batch` pairs, the ones with most work first. `parallel(tasks, f)` calls f() `tasks` times, on as many threads
// as it likes. The labels must be KEEP on entry.
template <typename Token, typename Parallel>
void align_batch(Packed<Token> original, Packed<Token> edited, int64_t batch, int64_t num_threads, Path path,
                 int64_t* distance, uint8_t* original_ops, uint8_t* edited_ops, Parallel&& parallel) {
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
    Aligner<Token> aligner(path);
    for (int64_t at = next++; at < batch; at = next++) {
      const int64_t pair = order[at];
      const Labels labels{original_ops + original.cu_seqlens[pair], edited_ops + edited.cu_seqlens[pair]};
      distance[pair] = aligner.align(original[pair], edited[pair], labels);
    }
  });
}

}  // namespace fgrl
