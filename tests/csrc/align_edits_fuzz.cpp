// Checks the alignment headers against a full table, with no torch: every algorithm, instruction set and id width must
// give the labels that the rule in csrc/align/trace.h prescribes.
//
// Built with -fsanitize=fuzzer it is a libFuzzer target. Otherwise its `main` replays the files given as arguments,
// then makes random inputs for FUZZ_SECONDS (default 5), or with FUZZ_THREADS set aligns batches on that many threads.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "align/align_edits.h"
#include "isas.h"

namespace {

using Tokens = std::vector<int64_t>;

struct Result {
  int64_t distance;
  std::vector<uint8_t> original, edited;
  bool operator==(const Result&) const = default;
};

// The rule of csrc/align/trace.h on the full table, moves taken one at a time.
Result by_rule(const Tokens& a, const Tokens& b) {
  const size_t n = a.size(), m = b.size();
  std::vector<int32_t> table((n + 1) * (m + 1));
  const auto at = [&](size_t i, size_t j) -> int32_t& { return table[i * (m + 1) + j]; };
  for (size_t i = 0; i <= n; ++i) at(i, 0) = static_cast<int32_t>(i);
  for (size_t j = 0; j <= m; ++j) at(0, j) = static_cast<int32_t>(j);
  for (size_t i = 1; i <= n; ++i) {
    for (size_t j = 1; j <= m; ++j) {
      const int32_t edit = 1 + std::min({at(i - 1, j - 1), at(i - 1, j), at(i, j - 1)});
      at(i, j) = a[i - 1] == b[j - 1] ? at(i - 1, j - 1) : edit;
    }
  }
  Result result{at(n, m), std::vector<uint8_t>(n), std::vector<uint8_t>(m)};
  size_t i = n, j = m, run_i = n, run_j = m;
  bool in_run = false;
  const auto close_run = [&] {
    if (!in_run) return;
    const size_t p = run_i - i, q = run_j - j, both = std::min(p, q);
    for (size_t k = 0; k < p; ++k) result.original[i + k] = k < both ? fgrl::SUBSTITUTE : fgrl::DELETE;
    for (size_t k = 0; k < q; ++k) result.edited[j + k] = k < both ? fgrl::SUBSTITUTE : fgrl::INSERT;
    in_run = false;
  };
  while (i > 0 || j > 0) {
    const bool equal = i > 0 && j > 0 && a[i - 1] == b[j - 1];
    const int32_t cheaper = at(i, j) - 1;
    size_t up = 0, left = 0;
    if (!equal || in_run) {
      if (!equal && i > 0 && j > 0 && at(i - 1, j - 1) == cheaper) {
        up = left = 1;
      } else if (i > 0 && at(i - 1, j) == cheaper) {
        up = 1;
      } else if (j > 0 && at(i, j - 1) == cheaper) {
        left = 1;
      }
    }
    if (up + left == 0) {
      close_run();
      --i, --j;
      continue;
    }
    if (!in_run) run_i = i, run_j = j;
    in_run = true;
    i -= up, j -= left;
  }
  close_run();
  return result;
}

template <typename Token>
Result by_path(const Tokens& a, const Tokens& b, fgrl::Algorithm algorithm, fgrl::Isa isa) {
  // Exact-size buffers, so that a read or write past either end is seen.
  const std::vector<Token> x(a.begin(), a.end()), y(b.begin(), b.end());
  std::vector<Token> other = x;
  std::rotate(other.begin(), other.begin() + static_cast<int64_t>(other.size() / 2), other.end());
  for (Token& token : other) token = token / 2 + 1;
  fgrl::Aligner<Token> aligner(algorithm, isa);
  const auto add = [&](const std::vector<Token>& left, const std::vector<Token>& right, Result& result) {
    result = {0, std::vector<uint8_t>(left.size()), std::vector<uint8_t>(right.size())};
    aligner.add(fgrl::Core<Token>{left.data(), static_cast<int64_t>(left.size())},
                fgrl::Core<Token>{right.data(), static_cast<int64_t>(right.size())},
                fgrl::Labels{result.original.data(), result.edited.data()}, &result.distance);
  };
  // Among other pairs, then alone: neither they nor what they leave in the aligner's memory must matter.
  Result before, among, after, alone;
  add(other, y, before);
  add(x, y, among);
  add(y, other, after);
  aligner.finish();
  add(x, y, alone);
  aligner.finish();
  return among == alone ? among : Result{-1, {}, {}};
}

void check(bool right, const char* what, const Tokens& a, const Tokens& b) {
  if (right) return;
  std::fprintf(stderr, "%s: wrong labels for lengths %zu and %zu\n", what, a.size(), b.size());
  std::abort();
}

// The search must not find a distance below the true one, and the labels must not depend on where it gave up.
void check_wavefront_limits(const Tokens& a, const Tokens& b, const Result& expected) {
  if (a.empty() || b.empty() || a.back() == b.back()) return;  // it gets pairs without a common suffix
  const fgrl::Core<int64_t> x{a.data(), static_cast<int64_t>(a.size())}, y{b.data(), static_cast<int64_t>(b.size())};
  fgrl::Wavefront wavefront(fgrl::EqualRun(fgrl::isa()));
  constexpr double UNLIMITED = std::numeric_limits<double>::infinity();
  check(!wavefront.search(x, y, expected.distance - 1, UNLIMITED), "limit below the distance", a, b);
  check(wavefront.search(x, y, expected.distance, UNLIMITED), "no distance at the limit", a, b);
  Result result{0, std::vector<uint8_t>(a.size()), std::vector<uint8_t>(b.size())};
  result.distance = wavefront.align(x, y, 0, fgrl::Labels{result.original.data(), result.edited.data()});
  check(result == expected, "limit at the distance", a, b);
}

void check_pair(const Tokens& a, const Tokens& b) {
  const Result expected = by_rule(a, b);
  check_wavefront_limits(a, b, expected);
  for (int algorithm = 0; algorithm <= 3; ++algorithm) {
    for (const fgrl::Isa isa : present_isas()) {
      const auto forced = static_cast<fgrl::Algorithm>(algorithm);
      check(by_path<int32_t>(a, b, forced, isa) == expected, "int32", a, b);
      if (isa == fgrl::isa() || algorithm == 0) check(by_path<int64_t>(a, b, forced, isa) == expected, "int64", a, b);
    }
  }
  Tokens c = a, d = b;  // ids that differ in their upper half only
  for (int64_t& token : c) token = token * (int64_t{1} << 32) - 1;
  for (int64_t& token : d) token = token * (int64_t{1} << 32) - 1;
  check(by_path<int64_t>(c, d, fgrl::Algorithm::AUTO, fgrl::isa()) == expected, "wide int64", a, b);
}

// An input is a byte for the alphabet, two for the length of the first sequence, and a byte for every token.
void check_bytes(const uint8_t* data, size_t size) {
  if (size < 3) return;
  const int64_t alphabet = data[0] % 255 + 1;
  Tokens tokens;
  for (size_t i = 3; i < std::min<size_t>(size, 3 + 1600); ++i) tokens.push_back(data[i] % alphabet);
  const size_t first = (data[1] + 256u * data[2]) % (tokens.size() + 1);
  check_pair(Tokens(tokens.begin(), tokens.begin() + static_cast<int64_t>(first)),
             Tokens(tokens.begin() + static_cast<int64_t>(first), tokens.end()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  check_bytes(data, size);
  return 0;
}

#ifndef FGRL_LIBFUZZER

namespace {

std::pair<Tokens, Tokens> random_pair(std::mt19937_64& random, uint64_t longest) {
  const uint64_t vocabulary = 1 + random() % (random() % 2 ? 4 : 3000), rate = random() % 101;
  Tokens a(random() % (longest + 1)), b;
  for (int64_t& token : a) {
    token = static_cast<int64_t>(random() % vocabulary);
    const uint64_t kind = random() % 100 < rate ? random() % 3 : 3;
    if (kind == 3 || kind == 2) b.push_back(token);
    if (kind == 1 || kind == 2) b.push_back(static_cast<int64_t>(random() % vocabulary));
  }
  if (random() % 2) std::swap(a, b);
  return {a, b};
}

void check_threads(int64_t threads) {
  std::mt19937_64 random(1);
  std::vector<int32_t> original, edited;
  std::vector<int64_t> original_bounds{0}, edited_bounds{0};
  std::vector<Result> expected;
  for (int pair = 0; pair < 600; ++pair) {  // enough that all threads are used
    const auto [a, b] = random_pair(random, 300);
    original.insert(original.end(), a.begin(), a.end());
    edited.insert(edited.end(), b.begin(), b.end());
    original_bounds.push_back(static_cast<int64_t>(original.size()));
    edited_bounds.push_back(static_cast<int64_t>(edited.size()));
    expected.push_back(by_rule(a, b));
  }
  std::vector<uint8_t> original_ops(original.size()), edited_ops(edited.size());
  std::vector<int64_t> distance(expected.size());
  const auto parallel = [](int64_t tasks, const auto& run) {
    std::vector<std::thread> workers;
    for (int64_t task = 0; task < tasks; ++task) workers.emplace_back([&] { run(); });
    for (std::thread& worker : workers) worker.join();
  };
  fgrl::align_batch(fgrl::Packed<int32_t>{original.data(), original_bounds.data()},
                    fgrl::Packed<int32_t>{edited.data(), edited_bounds.data()},
                    static_cast<int64_t>(expected.size()), threads, fgrl::Algorithm::AUTO, distance.data(), original_ops.data(),
                    edited_ops.data(), parallel);
  for (size_t pair = 0; pair < expected.size(); ++pair) {
    const Result got{distance[pair],
                     {original_ops.begin() + original_bounds[pair], original_ops.begin() + original_bounds[pair + 1]},
                     {edited_ops.begin() + edited_bounds[pair], edited_ops.begin() + edited_bounds[pair + 1]}};
    check(got == expected[pair], "threads", {}, {});
  }
}

}  // namespace

int main(int count, char** names) {
  if (const char* threads = std::getenv("FUZZ_THREADS")) {
    check_threads(std::atoi(threads));
    return 0;
  }
  for (int i = 1; i < count; ++i) {
    std::ifstream file(names[i], std::ios::binary);
    const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
    check_bytes(bytes.data(), bytes.size());
  }
  const char* seconds = std::getenv("FUZZ_SECONDS");
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds ? std::atoi(seconds) : 5);
  std::mt19937_64 random(7);
  int64_t pairs = 0;
  while (std::chrono::steady_clock::now() < end) {
    const auto [a, b] = random_pair(random, pairs % 50 == 49 ? 1100 : 200);
    check_pair(a, b);
    ++pairs;
  }
  std::printf("%d files and %lld random pairs: every path agrees with the rule\n", count - 1,
              static_cast<long long>(pairs));
}

#endif
