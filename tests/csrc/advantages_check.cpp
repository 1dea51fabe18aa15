// Every instruction set's recursion against the one-token-at-a-time definition in long double, with and without holes,
// at all small sizes and around a chunk's edge. Memory is exactly as large as it must be, for the sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "tensors/binary.h"
#include "advantages/gae.h"
#include "isas.h"

template <typename T>
static void check(int64_t size, double hole_rate, bool shaped, std::mt19937& random) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  std::vector<T> rewards(size), values(size), logprobs(size), ref(size);
  std::vector<uint8_t> mask(size);
  for (int64_t t = 0; t < size; ++t) {
    for (auto* row : {&rewards, &values, &logprobs, &ref}) (*row)[t] = static_cast<T>(normal(random));
    mask[t] = uniform(random) >= hole_rate;
    if (!mask[t]) rewards[t] = values[t] = logprobs[t] = ref[t] = static_cast<T>(NAN);
  }
  const T bootstrap = T(0.5), score = T(2);
  std::vector<T> advantages(size), returns(size), kl(size);
  double moments[3];
  fgrl::AdvantageArguments<T> of{};
  of.rewards = rewards.data(), of.values = values.data(), of.bootstrap = &bootstrap;
  of.mask.data = mask.data();
  of.gamma = 0.99, of.lam = 0.9, of.shaped = shaped;
  of.advantages = advantages.data(), of.returns = returns.data();
  if (shaped) {
    of.logprobs = logprobs.data(), of.ref_logprobs = ref.data(), of.sequence_rewards = &score;
    of.reward_scale = T(2), of.reward_low = T(-1), of.reward_high = T(1), of.kl_coef = T(0.1), of.kl_kind = 2;
    of.kl = kl.data(), of.moments = moments;
  }
  fgrl::AdvantageScratch<T> scratch;
  fgrl::sequence_advantages(of, 0, 0, size, scratch);

  long double next_advantage = 0, next_value = bootstrap, sum = 0;
  bool last = true;
  const auto expect = [&](const char* what, int64_t t, long double wanted, T found) {
    const long double tolerance = (sizeof(T) == 4 ? 4e-6L : 1e-13L) * (1 + std::fabs(wanted));
    if (std::fabs(wanted - found) <= tolerance) return;
    std::printf("%s of token %ld of %ld, %zu bytes, isa %d: %Lg, not %g\n", what, static_cast<long>(t),
                static_cast<long>(size), sizeof(T), static_cast<int>(fgrl::isa()), wanted, static_cast<double>(found));
    std::exit(1);
  };
  for (int64_t t = size - 1; t >= 0; --t) {
    if (!mask[t]) {
      expect("advantage", t, 0, advantages[t]), expect("return", t, 0, returns[t]);
      continue;
    }
    long double reward = rewards[t];
    if (shaped) {
      const long double d = static_cast<long double>(logprobs[t]) - ref[t], k3 = std::expm1(-d) + d;
      reward = 2 * std::fmin(1.0L, std::fmax(-1.0L, reward)) - 0.1L * k3 + (last ? score : T(0));
      expect("kl", t, k3, kl[t]);
    }
    last = false;
    next_advantage = reward + 0.99L * next_value - values[t] + 0.99L * 0.9L * next_advantage;
    next_value = values[t];
    sum += advantages[t];
    expect("advantage", t, next_advantage, advantages[t]);
    expect("return", t, next_advantage + next_value, returns[t]);
  }
  if (shaped && std::fabs(sum - moments[1]) > 1e-9L * (1 + size)) std::printf("sum of advantages\n"), std::exit(1);
}

int main() {
  std::mt19937 random(0);
  for (const auto limit : present_isas()) {
    fgrl::isa_limit = limit;
    for (int64_t size = 0; size < 1100; size += size < 70 || (size > 500 && size < 530) ? 1 : 37) {
      for (const double hole_rate : {0.0, 0.3, 1.0}) {
        for (const bool shaped : {false, true}) {
          check<float>(size, hole_rate, shaped, random);
          check<double>(size, hole_rate, shaped, random);
        }
      }
    }
  }
  std::vector<float> flags(10000, 1.0f);
  if (!fgrl::is_binary(flags.data(), 10000)) return 1;
  flags[9999] = NAN;
  if (fgrl::is_binary(flags.data(), 10000)) return 1;
  std::puts("every instruction set agrees with the definition");
}
