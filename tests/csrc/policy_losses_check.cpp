// Every policy loss and every importance weight on every instruction set, over sequences of all kinds, the empty ones
// among them. The numbers are held to their definitions from Python; here the instruction sets have to agree with the
// plainest one, single sequences with batches, and memory is exactly as large as it must be, for the sanitizers. In
// fp32 alone: these are 21 functions, and a minute of compilation.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own header of AVX-512 (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"

#include "losses/losses.h"
#include "isas.h"

using namespace fgrl;

template <typename T>
struct Batch {
  std::vector<T> tokens[6];
  std::vector<uint8_t> mask;
  std::vector<int64_t> cu_seqlens{0};
  Weighting<T> weighting;

  Batch(const std::vector<int64_t>& lengths, double hole_rate, bool weighted, std::mt19937& random) {
    for (const int64_t length : lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
    const int64_t size = cu_seqlens.back();
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    for (int64_t t = 0; t < size; ++t) {
      mask.push_back(uniform(random) >= hole_rate);
      for (auto& row : tokens) row.push_back(mask[t] != 0 ? static_cast<T>(normal(random) / 4) : static_cast<T>(NAN));
    }
    if (!weighted) return;
    weighting.sequences = sequences();
    for (size_t i = 1; i <= lengths.size(); ++i) weighting.weights.push_back(T(1) / static_cast<T>(i));
  }

  Sequences sequences() const { return {static_cast<int64_t>(cu_seqlens.size()) - 1, 0, cu_seqlens.data(), true}; }
};

template <typename T>
struct Results {
  std::vector<T> grad;
  PPOTotals totals;
};

template <typename T>
static Results<T> run(const Batch<T>& batch, PPOArguments<T> of, bool one_by_one) {
  Results<T> found{std::vector<T>(batch.mask.size(), static_cast<T>(NAN)), {}};
  of.logprobs = batch.tokens[0].data(), of.old_logprobs = batch.tokens[1].data();
  of.advantages = batch.tokens[2].data(), of.ref_logprobs = batch.tokens[3].data();
  of.entropy = batch.tokens[4].data(), of.rollout_logprobs = batch.tokens[5].data();
  of.logprobs_grad = found.grad.data();
  const Sequences sequences = batch.sequences();
  const int64_t count = sequences.count, step = one_by_one ? 1 : std::max<int64_t>(count, 1);
  for (int64_t first = 0; first < count; first += step) {
    const uint8_t* mask = batch.mask.data() + sequences.begin(first);
    found.totals.add(FGRL_DISPATCH(ppo_sequences, T)(of, batch.weighting, sequences, first, first + step, mask));
  }
  return found;
}

template <typename T>
static void compare(const char* what, const Results<T>& wanted, const Results<T>& found, int loss) {
  const double tolerance = 2e-5;
  const auto agree = [&](double a, double b) { return std::fabs(a - b) <= tolerance * (1 + std::fabs(a)); };
  for (size_t t = 0; t < wanted.grad.size(); ++t) {
    if (agree(wanted.grad[t], found.grad[t])) continue;
    std::printf("%s, loss %d, isa %d, gradient %zu: %g, not %g\n", what, loss, static_cast<int>(isa()), t,
                static_cast<double>(wanted.grad[t]), static_cast<double>(found.grad[t]));
    std::exit(1);
  }
  for (int i = 0; i < PPOTotals::SIZE; ++i) {
    if (agree(wanted.totals.values[i], found.totals.values[i])) continue;
    std::printf("%s, loss %d, isa %d, total %d: %g, not %g\n", what, loss, static_cast<int>(isa()), i,
                wanted.totals.values[i], found.totals.values[i]);
    std::exit(1);
  }
}

template <typename T>
static void check(const Batch<T>& batch) {
  for (int loss = 0; loss <= static_cast<int>(PolicyLoss::REINFORCE); ++loss) {
    for (int level = 0; level <= static_cast<int>(ImportanceLevel::GEOMETRIC); ++level) {
      PPOArguments<T> of{};
      of.policy_loss = static_cast<PolicyLoss>(loss), of.importance_level = static_cast<ImportanceLevel>(level);
      if (!of.needs_sequences() && level == 0) of.importance_level = ImportanceLevel::SEQUENCE;
      of.masks_importance = level == 1;
      const T middle = of.policy_loss == PolicyLoss::GMPO ? T(0) : T(1);
      of.ratio_low = middle - T(0.2), of.ratio_high = middle + T(0.3), of.dual_clip = T(1.5);
      of.importance_floor = T(0.5), of.importance_cap = T(2), of.tau_positive = T(1), of.tau_negative = T(1.05);
      of.kl_coef = T(0.5), of.entropy_coef = T(0.25), of.kl_kind = 6;
      isa_limit = present_isas().front();
      const auto wanted = run(batch, of, false);
      for (const auto limit : present_isas()) {
        isa_limit = limit;
        compare("instruction set", wanted, run(batch, of, false), loss);
        compare("one sequence at a time", wanted, run(batch, of, true), loss);
      }
    }
  }
}

int main() {
  std::mt19937 random(0);
  const std::vector<std::vector<int64_t>> all_lengths{
      {}, {0}, {0, 0, 0}, {1}, {0, 1, 0}, {7, 8, 9}, {15, 0, 16, 17, 0}, {63, 64, 65, 1, 2, 3}, {300, 0, 4097}};
  for (const auto& lengths : all_lengths) {
    for (const double hole_rate : {0.0, 0.3, 1.0}) {
      for (const bool weighted : {false, true}) {
        check(Batch<float>(lengths, hole_rate, weighted, random));
      }
    }
  }
  std::puts("every instruction set agrees with the definition");
}
