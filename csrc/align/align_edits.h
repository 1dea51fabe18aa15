// Batched token-level edit alignment over packed sequences. Torch-free: pointers and lengths only.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "align/bitparallel.h"
#include "align/bits.h"
#include "align/equal_run.h"
#include "align/small.h"
#include "align/trace.h"
#include "align/wavefront.h"

namespace fgrl {

// One side of a batch: sequence i is tokens[cu_seqlens[i] .. cu_seqlens[i + 1]).
template <typename Token>
struct Packed {
  const Token* tokens;
  const int64_t* cu_seqlens;

  Core<Token> operator[](int64_t i) const { return {tokens + cu_seqlens[i], cu_seqlens[i + 1] - cu_seqlens[i]}; }
};

// What a caller may force; the labels are the same whatever it is.
enum class Algorithm { AUTO = 0, WAVEFRONT = 1, BIT_PARALLEL = 2, SMALL = 3 };

// Aligns pairs one after another, reusing its memory.
template <typename Token>
class Aligner {
 public:
  Aligner(Algorithm algorithm, Isa isa)
      : algorithm_(algorithm),
        isa_(isa),
        equal_run_(isa),
        wavefront_(equal_run_),
        small_(isa),
        bit_parallel_(isa) {}

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
    const bool forced = algorithm_ == Algorithm::WAVEFRONT;
    const double budget = forced ? std::numeric_limits<double>::infinity() : bit_parallel_cost(a, b);
    if (wavefront_.search(a, b, wavefront_limit(a, b, budget), budget)) {
      *distance = wavefront_.align(a, b, prefix, labels);
    } else if (algorithm_ == Algorithm::BIT_PARALLEL || !small_.add(a, b, prefix, labels, distance)) {
      *distance = bit_parallel_.align(a, b, prefix, labels);
    }
  }

  // Aligns the pairs that were put aside.
  void finish() { small_.finish(); }

  bool runs(Algorithm algorithm, Isa isa) const { return algorithm_ == algorithm && isa_ == isa; }

  // Bytes held for the next pair.
  size_t memory() const { return wavefront_.memory() + bit_parallel_.memory(); }

 private:
  // Measured nanoseconds of the bit vectors: so many a word of 64 cells by instruction set, and 5 a token where tokens
  // are hashed.
  double bit_parallel_cost(Core<Token> a, Core<Token> b) const {
    const double rows = static_cast<double>(std::min(a.size, b.size));
    const double columns = static_cast<double>(std::max(a.size, b.size)), words = std::ceil(rows / 64) * columns;
    if (is_short(a, b)) return 100 + (isa_ >= Isa::AVX512 ? 1.5 : isa_ == Isa::AVX2 ? 3.0 : 5.0) * words;
    return 5 * (rows + columns) + (isa_ >= Isa::AVX512 ? 0.9 : isa_ == Isa::AVX2 ? 1.4 : 3.5) * words;
  }

  // The distance up to which the wavefront may look, LONGEST for its memory's sake.
  int64_t wavefront_limit(Core<Token> a, Core<Token> b, double budget) const {
    if (algorithm_ == Algorithm::WAVEFRONT) return a.size + b.size;
    if (algorithm_ != Algorithm::AUTO) return -1;
    // One word a column costs no more than the first few levels.
    if (is_short(a, b) && std::min(a.size, b.size) <= 64) return -1;
    return std::min(static_cast<int64_t>(Wavefront::distance_for(2 * budget)), LONGEST);
  }

  static bool is_short(Core<Token> a, Core<Token> b) {
    return std::min(a.size, b.size) <= SMALL_ROWS && std::max(a.size, b.size) <= SMALL_COLUMNS;
  }

  static constexpr int64_t LONGEST = 2800;
  Algorithm algorithm_;
  Isa isa_;
  EqualRun equal_run_;
  Wavefront wavefront_;
  Small<Token> small_;
  BitParallel<Token> bit_parallel_;
};

// The aligner that a thread uses again and again: fresh memory costs as much as aligning dozens of short pairs.
template <typename Token>
class ThreadAligner {
 public:
  ThreadAligner(Algorithm algorithm, Isa isa) {
    if (!cached() || !cached()->runs(algorithm, isa)) cached() = std::make_unique<Aligner<Token>>(algorithm, isa);
  }
  ThreadAligner(const ThreadAligner&) = delete;

  // Pairs that an exception left unaligned are forgotten, and memory that few batches need is given back.
  ~ThreadAligner() {
    if (!finished_ || cached()->memory() > size_t{1} << 22) cached().reset();
  }

  void add(Core<Token> a, Core<Token> b, Labels labels, int64_t* distance) { cached()->add(a, b, labels, distance); }

  void finish() {
    cached()->finish();
    finished_ = true;
  }

 private:
  static std::unique_ptr<Aligner<Token>>& cached() {
    thread_local std::unique_ptr<Aligner<Token>> aligner;
    return aligner;
  }

  bool finished_ = false;
};

// All pairs, those with most work first, by powers of two: enough to balance threads, and it keeps the order in memory.
template <typename Token>
std::vector<int64_t> longest_first(Packed<Token> original, Packed<Token> edited, int64_t batch) {
  const auto size_class = [&](int64_t pair) {
    return leading_zeros(static_cast<uint64_t>(original[pair].size) * static_cast<uint64_t>(edited[pair].size));
  };
  int64_t position[65] = {};
  for (int64_t pair = 0; pair < batch; ++pair) ++position[size_class(pair)];
  std::exclusive_scan(std::begin(position), std::end(position), std::begin(position), int64_t{0});
  std::vector<int64_t> order(static_cast<size_t>(batch));
  for (int64_t pair = 0; pair < batch; ++pair) order[position[size_class(pair)]++] = pair;
  return order;
}

// Aligns `batch` pairs. `parallel(tasks, f)` calls f() `tasks` times, on as many threads as it likes.
template <typename Token, typename Parallel>
void align_batch(Packed<Token> original, Packed<Token> edited, int64_t batch, int64_t num_threads,
                 Algorithm algorithm, int64_t* distance, uint8_t* original_ops, uint8_t* edited_ops,
                 Parallel&& parallel) {
  const Isa isa = fgrl::isa();
  num_threads = std::min(num_threads, batch);
  const std::vector<int64_t> order = num_threads > 1 ? longest_first(original, edited, batch) : std::vector<int64_t>();
  const auto pair_at = [&](int64_t at) { return order.empty() ? at : order[at]; };
  const auto align = [&](ThreadAligner<Token>& aligner, int64_t at) {
    const int64_t pair = pair_at(at);
    const Core<Token> a = original[pair], b = edited[pair];
    const Labels labels{original_ops + original.cu_seqlens[pair], edited_ops + edited.cu_seqlens[pair]};
    a.prefetch_end();
    b.prefetch_end();
    std::fill_n(labels.original, a.size, KEEP);
    std::fill_n(labels.edited, b.size, KEEP);
    aligner.add(a, b, labels, distance + pair);
  };
  std::atomic<int64_t> next{0};
  int64_t end = batch;
  if (num_threads > 1) {
    // A thread is woken for so much work only. How much there is depends on the edits: the shortest pairs tell, unless
    // each of them is much work by itself.
    constexpr double TOKENS = 32768, SECONDS = 30e-6;
    const double tokens = static_cast<double>(original.cu_seqlens[batch] + edited.cu_seqlens[batch]);
    double threads = tokens / TOKENS;
    if (tokens < 4096.0 * static_cast<double>(batch)) {
      const auto start = std::chrono::steady_clock::now();
      double done = 0, seconds = 0;
      ThreadAligner<Token> aligner(algorithm, isa);
      while (end > 0 && seconds < SECONDS) {
        align(aligner, --end);
        done += static_cast<double>(original[pair_at(end)].size + edited[pair_at(end)].size);
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      }
      aligner.finish();
      threads = (tokens - done) / std::max(done, 1.0) * seconds / SECONDS;
    }
    num_threads = std::min(num_threads, 1 + static_cast<int64_t>(std::min(threads, 1e9)));
  }
  parallel(num_threads, [&] {
    ThreadAligner<Token> aligner(algorithm, isa);
    for (;;) {
      // Several short pairs at a time, one where few are left.
      const int64_t left = end - next.load(std::memory_order_relaxed);
      const int64_t chunk = std::clamp<int64_t>(left / (4 * num_threads), 1, 16);
      int64_t at = next.fetch_add(chunk);
      if (at >= end) break;
      for (const int64_t last = std::min(at + chunk, end); at < last; ++at) align(aligner, at);
    }
    aligner.finish();
  });
}

}  // namespace fgrl
