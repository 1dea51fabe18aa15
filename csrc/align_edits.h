// Batched token-level edit alignment over packed sequences. Torch-free: pointers and lengths only.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
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

  bool operator==(const Path&) const = default;
};

// Aligns pairs one after another, reusing its memory.
template <typename Token>
class Aligner {
 public:
  explicit Aligner(Path path)
      : cpu_(usable_cpu(path.cpu)), path_(path), equal_run_(cpu_), wavefront_(equal_run_), small_(cpu_), bit_parallel_(cpu_) {}

  // Aligns one pair by the time `finish` returns; the labels must be KEEP on entry.
  void add(Core<Token> a, Core<Token> b, Labels labels, int64_t* distance) {
    const int64_t shorter = std::min(a.size, b.size);
    const int64_t suffix = equal_run_.suffix(a.tokens + a.size, b.tokens + b.size, shorter);
    if (suffix == a.size && suffix == b.size) {
      *distance = 0;
      return;
    }
    const int64_t prefix = equal_run_.prefix(a.tokens, b.tokens, shorter - suffix);
    a = {a.tokens + prefix, a.size - prefix - suffix};
    b = {b.tokens + prefix, b.size - prefix - suffix};
    labels = {labels.original + prefix, labels.edited + prefix};
    if (a.size == 0 || b.size == 0) {
      *distance = trace_back(equal_run_, a, b, prefix, labels, [](int64_t, int64_t) { return 0u; });  // never asked
      return;
    }
    const int64_t worth = wavefront_worth(a.size, b.size);
    if (wavefront_.search(a, b, worth + worth / 2, worth)) {
      *distance = wavefront_.align(a, b, prefix, labels);
    } else if (path_.algorithm == Algorithm::BIT_PARALLEL || !small_.add(a, b, prefix, labels, distance)) {
      *distance = bit_parallel_.align(a, b, prefix, labels);
    }
  }

  // Aligns the pairs that were put aside.
  void finish() { small_.finish(); }

  Path path() const { return path_; }

  // Bytes held for the next pair.
  size_t memory() const { return wavefront_.memory() + bit_parallel_.memory(); }

 private:
  // The distance up to which the wavefront is worth its while: where its measured cost, 2 ns for each of d^2 cells, reaches that
  // of the bit vectors, which is some 5 ns a token and 1, 1.4 or 3.5 ns a word of 64 cells by instruction set, or 3 ns a
  // word for short pairs. LONGEST bounds the memory of the levels, 4 bytes a cell.
  int64_t wavefront_worth(int64_t n, int64_t m) const {
    if (path_.algorithm == Algorithm::BIT_PARALLEL || path_.algorithm == Algorithm::SMALL) return -2;
    if (path_.algorithm == Algorithm::WAVEFRONT) return n + m;
    const double rows = static_cast<double>(std::min(n, m)), columns = static_cast<double>(std::max(n, m));
    const double words = std::ceil(rows / 64) * columns;
    const bool is_short = rows <= SMALL_ROWS && columns <= SMALL_COLUMNS;
    const double word_cost = cpu_ == Cpu::AVX512 ? 1.0 : cpu_ == Cpu::AVX2 ? 1.4 : 3.5;
    if (is_short && rows <= 64) return -2;  // one word a column costs no more than the first few levels
    const double cost = is_short ? 3 * words : 5 * (rows + columns) + word_cost * words;
    return std::min(static_cast<int64_t>(std::sqrt(cost / 2)), LONGEST);
  }

  static constexpr int64_t LONGEST = 2800;
  Cpu cpu_;
  Path path_;
  EqualRun equal_run_;
  Wavefront wavefront_;
  Small<Token> small_;
  BitParallel<Token> bit_parallel_;
};

// The aligner that this thread uses again and again: fresh memory costs as much as aligning dozens of short pairs.
template <typename Token>
std::unique_ptr<Aligner<Token>>& thread_aligner(Path path) {
  thread_local std::unique_ptr<Aligner<Token>> aligner;
  if (!aligner || aligner->path() != path) aligner = std::make_unique<Aligner<Token>>(path);
  return aligner;
}

// Aligns `batch` pairs, the ones with most work first. `parallel(tasks, f)` calls f() `tasks` times, on as many threads
// as it likes.
template <typename Token, typename Parallel>
void align_batch(Packed<Token> original, Packed<Token> edited, int64_t batch, int64_t num_threads, Path path,
                 int64_t* distance, uint8_t* original_ops, uint8_t* edited_ops, Parallel&& parallel) {
  std::vector<int64_t> order(batch);
  std::iota(order.begin(), order.end(), 0);
  const auto work = [&](int64_t pair) {
    return static_cast<double>(original[pair].size) * static_cast<double>(edited[pair].size);
  };
  // Waking a thread takes as long as aligning thousands of tokens.
  num_threads = std::min(num_threads, 1 + (original.cu_seqlens[batch] + edited.cu_seqlens[batch]) / 32768);
  if (num_threads > 1) {
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return work(x) > work(y); });
  }
  std::atomic<int64_t> next{0};
  parallel(std::min(num_threads, batch), [&] {
    std::unique_ptr<Aligner<Token>>& aligner = thread_aligner<Token>(path);
    for (int64_t at = next++; at < batch; at = next++) {
      const int64_t pair = order[at];
      const Core<Token> a = original[pair], b = edited[pair];
      const Labels labels{original_ops + original.cu_seqlens[pair], edited_ops + edited.cu_seqlens[pair]};
      a.prefetch_end();
      b.prefetch_end();
      std::fill_n(labels.original, a.size, KEEP);
      std::fill_n(labels.edited, b.size, KEEP);
      aligner->add(a, b, labels, distance + pair);
    }
    aligner->finish();
    if (aligner->memory() > size_t{1} << 22) aligner.reset();
  });
}

}  // namespace fgrl
