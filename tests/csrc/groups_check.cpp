// Every instruction set's advantages within groups against the definition in long double: with and without holes, with
// and without segments, at all small sizes and around a chunk's edge. Memory is exactly as large as it must be, for the
// sanitizers.
#include "advantages/groups.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "isas.h"

template <typename T>
static void check(int64_t size, double hole_rate, bool segments, std::mt19937& random) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  std::vector<T> rewards(size), advantages(size);
  std::vector<int64_t> ids(size);
  std::vector<uint8_t> mask(size);
  for (int64_t t = 0; t < size; ++t) {
    mask[t] = uniform(random) >= hole_rate;
    rewards[t] = mask[t] ? static_cast<T>(300 + normal(random)) : static_cast<T>(NAN);
    ids[t] = t / 3;
  }
  const T outcome = T(2);
  fgrl::GroupArguments<T> of{};
  of.rewards = &outcome, of.token_rewards = rewards.data(), of.segment_ids = segments ? ids.data() : nullptr;
  of.mask.data = mask.data(), of.gamma = 0.9, of.advantages = advantages.data();
  fgrl::GroupScratch<T> scratch;
  fgrl::Items outcomes, scores;
  fgrl::sequence_items(of, 0, 0, size, outcomes, scores, scratch);
  const fgrl::Comparison half{0, 0.5};
  const auto compared =
      fgrl::compare({scores}, {{0}}, fgrl::Baseline::MEAN, fgrl::Scale::GROUP);
  fgrl::write_advantages(of, 0, 0, size, half, compared[0], scratch);

  const auto expect = [&](const char* what, int64_t t, long double wanted, double found) {
    const long double tolerance = (sizeof(T) == 4 ? 2e-5L : 1e-11L) * (1 + std::fabs(wanted));
    if (std::fabs(wanted - found) <= tolerance) return;
    std::printf("%s of token %ld of %ld, %zu bytes, isa %d: %Lg, not %g\n", what, static_cast<long>(t),
                static_cast<long>(size), sizeof(T), static_cast<int>(fgrl::isa()), wanted, found);
    std::exit(1);
  };
  std::vector<int64_t> valid, ends;
  for (int64_t t = 0; t < size; ++t) {
    if (mask[t]) valid.push_back(t);
  }
  for (size_t i = 0; i < valid.size(); ++i) {
    if (!segments || i + 1 == valid.size() || ids[valid[i]] != ids[valid[i + 1]]) ends.push_back(valid[i]);
  }
  long double mean = 0, squares = 0;
  for (const int64_t t : ends) mean += rewards[t];
  mean /= std::max<long double>(1, ends.size());
  for (const int64_t t : ends) squares += (rewards[t] - mean) * (rewards[t] - mean);
  const long double deviation = ends.size() > 1 ? std::sqrt(squares / (ends.size() - 1)) + 1e-6L : 1;
  long double following = 0;
  for (int64_t t = size - 1; t >= 0; --t) {
    if (!ends.empty() && t == ends.back()) {
      following = (rewards[t] - mean) / deviation + 0.9L * following;
      ends.pop_back();
    }
    expect("advantage", t, mask[t] ? 1 + following : 0, advantages[t]);
  }
}

int main() {
  std::mt19937 random(0);
  for (const auto limit : present_isas()) {
    fgrl::isa_limit = limit;
    for (int64_t size = 0; size < 1100; size += size < 70 || (size > 500 && size < 530) ? 1 : 37) {
      for (const double hole_rate : {0.0, 0.3, 1.0}) {
        for (const bool segments : {false, true}) {
          check<float>(size, hole_rate, segments, random);
          check<double>(size, hole_rate, segments, random);
        }
      }
    }
  }
  std::puts("every instruction set agrees with the definition");
}
