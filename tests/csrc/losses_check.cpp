// Every instruction set's losses against their definitions in long double: sizes around vectors and blocks, holes,
// sequences, ties and options. Memory is exactly as large as it must be, for the sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "losses/losses.h"
#include "isas.h"

using namespace fgrl;
using Wide = long double;

template <typename T>
struct Batch {
  std::vector<T> tokens[6];
  std::vector<uint8_t> mask;
  std::vector<int64_t> cu_seqlens;
  Weighting<T> weighting;
  int64_t size;

  Batch(int64_t size_, double hole_rate, bool weighted, std::mt19937& random) : mask(size_), size(size_) {
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    for (auto& row : tokens) row.resize(size);
    for (int64_t t = 0; t < size; ++t) {
      for (auto& row : tokens) row[t] = static_cast<T>(std::round(4 * normal(random)) / 8);  // with ties
      mask[t] = uniform(random) >= hole_rate;
      if (mask[t] == 0) for (auto& row : tokens) row[t] = static_cast<T>(NAN);
    }
    cu_seqlens = {0, 0, size / 5, size / 5, size / 5 + size / 3, size};
    if (!weighted) return;
    weighting.sequences = {5, 0, cu_seqlens.data(), true};
    for (int i = 1; i <= 5; ++i) weighting.weights.push_back(T(1) / T(i));
  }

  Wide weight(int64_t t) const {
    if (weighting.weights.empty()) return 1;
    int i = 0;
    while (cu_seqlens[i + 1] <= t) ++i;
    return weighting.weights[i];
  }

  // The same totals as one call, block by block.
  template <typename Totals, typename Block>
  Totals sum(const Block& block) const {
    Totals totals;
    for (int64_t begin = 0; begin < size; begin += TOKENS_A_BLOCK) {
      totals.add(block(begin, std::min(begin + TOKENS_A_BLOCK, size), mask.data() + begin));
    }
    return totals;
  }
};

template <typename T>
static void expect(const char* what, int64_t place, int64_t size, Wide wanted, Wide found) {
  const Wide tolerance = (sizeof(T) == 4 ? 4e-6L : 1e-13L) * (1 + std::fabs(wanted));
  if (std::fabs(wanted - found) <= tolerance) return;
  std::printf("%s, %ld of %ld, %zu bytes, isa %d: %Lg, not %Lg\n", what, static_cast<long>(place),
              static_cast<long>(size), sizeof(T), static_cast<int>(isa()), wanted, found);
  std::exit(1);
}

static Wide clip(Wide x, Wide low, Wide high) { return std::fmin(std::fmax(x, low), high); }

template <typename T>
static void check_ppo(const Batch<T>& batch, int kl_kind, bool all) {
  std::vector<T> logprobs_grad(batch.size), entropy_grad(batch.size);
  PPOArguments<T> of{};
  of.logprobs = batch.tokens[0].data(), of.old_logprobs = batch.tokens[1].data();
  of.advantages = batch.tokens[2].data();
  if (all) of.ref_logprobs = batch.tokens[3].data(), of.entropy = batch.tokens[4].data();
  if (all) of.rollout_logprobs = batch.tokens[5].data(), of.entropy_grad = entropy_grad.data();
  of.ratio_low = T(0.75), of.ratio_high = T(1.25), of.dual_clip = T(1.5), of.importance_cap = T(1.125);
  of.kl_coef = T(0.5), of.entropy_coef = T(0.25), of.kl_kind = kl_kind, of.logprobs_grad = logprobs_grad.data();
  const auto totals = batch.template sum<PPOTotals>([&](int64_t begin, int64_t end, const uint8_t* mask) {
    return FGRL_DISPATCH(ppo_block, T)(of, batch.weighting, begin, end, mask);
  });
  Wide wanted[PPOTotals::SIZE] = {};
  for (int64_t t = 0; t < batch.size; ++t) {
    Wide grad = 0, entropy_token_grad = 0;
    if (batch.mask[t] != 0) {
      const Wide logp = of.logprobs[t], old = of.old_logprobs[t], advantage = of.advantages[t], v = batch.weight(t);
      const Wide ratio = std::exp(logp - old), clipped = clip(ratio, of.ratio_low, of.ratio_high);
      Wide loss = std::fmax(-advantage * ratio, -advantage * clipped);
      const bool is_clipped = -advantage * clipped > -advantage * ratio;
      const bool is_dual = advantage < 0 && -advantage * of.dual_clip < loss;
      if (is_dual) loss = -advantage * of.dual_clip;
      grad = is_clipped || is_dual ? 0 : -advantage * ratio;
      if (all) {
        const Wide importance = std::fmin(std::exp(old - of.rollout_logprobs[t]), Wide(of.importance_cap));
        const Wide d = logp - of.ref_logprobs[t];
        const Wide values[] = {d, d * d / 2, std::expm1(-d) + d, std::fabs(d)};
        const Wide grads[] = {1, d, -std::expm1(-d), Wide(d > 0) - Wide(d < 0)};
        loss *= importance, grad *= importance;
        grad += of.kl_coef * (kl_kind < 4 ? grads[kl_kind] : ratio * d);
        wanted[1] += v * values[kl_kind % 4], wanted[2] += v * of.entropy[t];
        entropy_token_grad = -of.entropy_coef * v;
      }
      grad *= v, wanted[0] += v * loss;
      wanted[3] += is_clipped, wanted[4] += is_dual, wanted[5] += old - logp, wanted[6] += ratio;
      wanted[7] = std::fmax(wanted[7], ratio), wanted[8] += 1;
    }
    expect<T>("gradient by logprobs", t, batch.size, grad, logprobs_grad[t]);
    if (all) expect<T>("gradient by entropy", t, batch.size, entropy_token_grad, entropy_grad[t]);
  }
  for (int i = 0; i < PPOTotals::SIZE; ++i) {
    expect<T>("ppo_loss, total", i, batch.size, wanted[i] / (1 + batch.size), totals.values[i] / (1 + batch.size));
  }
}

template <typename T>
static void check_value(const Batch<T>& batch, bool is_clipped) {
  std::vector<T> gradient(batch.size);
  ValueArguments<T> of{};
  of.values = batch.tokens[0].data(), of.returns = batch.tokens[2].data(), of.clip = T(0.25);
  if (is_clipped) of.old_values = batch.tokens[1].data();
  of.values_grad = gradient.data();
  const auto totals = batch.template sum<ValueTotals>([&](int64_t begin, int64_t end, const uint8_t* mask) {
    return FGRL_DISPATCH(value_block, T)(of, batch.weighting, begin, end, mask);
  });
  Wide wanted[ValueTotals::SIZE] = {};
  for (int64_t t = 0; t < batch.size; ++t) {
    Wide grad = 0;
    if (batch.mask[t] != 0) {
      const Wide value = of.values[t], target = of.returns[t], v = batch.weight(t), error = value - target;
      const Wide near = is_clipped ? clip(value, of.old_values[t] - of.clip, of.old_values[t] + of.clip) : value;
      const bool greater = (near - target) * (near - target) > error * error;
      grad = greater ? 0 : v * error;
      wanted[0] += v * std::fmax(error * error, (near - target) * (near - target)) / 2;
      wanted[1] += greater, wanted[2] += value, wanted[3] += target, wanted[4] += error * error, wanted[5] += 1;
    }
    expect<T>("gradient by values", t, batch.size, grad, gradient[t]);
  }
  for (int i = 0; i < ValueTotals::SIZE; ++i) {
    expect<T>("value_loss, total", i, batch.size, wanted[i] / (1 + batch.size), totals.values[i] / (1 + batch.size));
  }
}

template <typename T>
static void check_edits(const Batch<T>& batch) {
  std::vector<T> gradient(batch.size);
  std::vector<uint8_t> edits(batch.size);
  for (int64_t t = 0; t < batch.size; ++t) edits[t] = t % 3 == 0;
  EditSide<T> side{batch.tokens[0].data(), {edits.data()}, {batch.mask.data()}, batch.size, gradient.data()};
  EditFlags flags;
  flags.read(side, 0);
  const EditSums sums = FGRL_DISPATCH(edit_sums, T)(side.rewards, flags, batch.size);
  FGRL_DISPATCH(edit_gradient, T)(side.rewards, flags, batch.size, T(-0.5), T(0.25), gradient.data());
  Wide score = 0, squares = 0, edited = 0, kept = 0;
  for (int64_t t = 0; t < batch.size; ++t) {
    const Wide reward = batch.mask[t] != 0 ? side.rewards[t] : 0;
    const bool is_edited = batch.mask[t] != 0 && edits[t] != 0, is_kept = batch.mask[t] != 0 && edits[t] == 0;
    score += is_edited ? reward : 0, squares += is_kept ? reward * reward : 0, edited += is_edited, kept += is_kept;
    expect<T>("gradient by rewards", t, batch.size, is_edited ? -0.5L : is_kept ? 0.25L * reward : 0, gradient[t]);
  }
  expect<T>("score", 0, batch.size, score, sums.score), expect<T>("squares", 0, batch.size, squares, sums.squares);
  expect<T>("edited", 0, batch.size, edited, sums.edited), expect<T>("kept", 0, batch.size, kept, sums.kept);
}

template <typename T>
static void check(int64_t size, double hole_rate, bool weighted, std::mt19937& random) {
  const Batch<T> batch(size, hole_rate, weighted, random);
  check_ppo(batch, 0, false);
  for (int kind = 0; kind < 8; ++kind) check_ppo(batch, kind, true);
  check_value(batch, false), check_value(batch, true), check_edits(batch);
}

int main() {
  std::mt19937 random(0);
  for (const auto limit : present_isas()) {
    isa_limit = limit;
    for (const int64_t size : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 300, 4095, 4096, 4097, 9001}) {
      for (const double hole_rate : {0.0, 0.3, 1.0}) {
        for (const bool weighted : {false, true}) {
          check<float>(size, hole_rate, weighted, random);
          check<double>(size, hole_rate, weighted, random);
        }
      }
    }
  }
  std::puts("every instruction set agrees with the definition");
}
