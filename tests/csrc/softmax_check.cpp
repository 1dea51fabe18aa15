// Every instruction set's softmax rows against their definition in long double, at all small sizes and around a block's
// edge. Memory is exactly as large as it must be, for the sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "linear/softmax_rows.h"
#include "isas.h"

static void expect(const char* what, int64_t size, long double wanted, double found, double tolerance) {
  if (std::fabs(wanted - found) <= tolerance * (1 + std::fabs(wanted))) return;
  std::printf("%s of %ld logits, isa %d: %Lg, not %g\n", what, static_cast<long>(size), static_cast<int>(fgrl::isa()),
              wanted, found);
  std::exit(1);
}

template <typename T>
static void check(int64_t size, bool has_bias, double softcap, std::mt19937& random) {
  std::normal_distribution<double> normal;
  std::vector<T> logits(size), bias(size), gradient(size);
  for (int64_t j = 0; j < size; ++j) logits[j] = static_cast<T>(9 * normal(random)), bias[j] = static_cast<T>(normal(random));
  if (size > 2 && has_bias) bias[1] = -INFINITY;  // a banned word
  const int64_t target = size - 1;
  const fgrl::LogitScale<T> scale{T(1.25), static_cast<T>(softcap)};
  const T* const biases = has_bias ? bias.data() : nullptr;
  const auto found = fgrl::row_statistics<T>(logits.data(), biases, size, target, scale);
  const fgrl::RowGrad<T> grad{found.max, T(-0.3), T(0.2), T(0.7)};
  fgrl::row_gradient(logits.data(), biases, size, target, scale, grad, gradient.data());

  if constexpr (sizeof(T) == 4) {  // rounded to a shorter format, in place of the logits
    std::vector<T> place(logits);
    std::vector<fgrl::BFloat16> rounded(size);
    fgrl::row_gradient(place.data(), biases, size, target, scale, grad, reinterpret_cast<fgrl::BFloat16*>(place.data()));
    std::memcpy(rounded.data(), place.data(), rounded.size() * sizeof(rounded[0]));
    for (int64_t j = 0; j < size; ++j) {
      const uint32_t bits = static_cast<uint32_t>(rounded[j].bits) << 16;
      float found_grad;
      std::memcpy(&found_grad, &bits, sizeof(bits));
      if (std::fabs(found_grad - gradient[j]) <= 0x1.01p-8 * std::fabs(gradient[j])) continue;
      std::printf("rounded gradient %ld of %ld, isa %d: %g, not %g\n", static_cast<long>(j), static_cast<long>(size),
                  static_cast<int>(fgrl::isa()), static_cast<double>(gradient[j]), static_cast<double>(found_grad));
      std::exit(1);
    }
  }

  const double tolerance = sizeof(T) == 4 ? 2e-6 : 1e-14;
  std::vector<long double> z(size), cap(size, 1);
  long double max = -INFINITY, sum = 0, moment = 0;
  for (int64_t j = 0; j < size; ++j) {
    const T logit = has_bias ? logits[j] + bias[j] : logits[j];
    const long double bent = softcap == 0 ? 0 : std::tanh(static_cast<long double>(logit) / softcap);
    if (softcap != 0) cap[j] = 1 - bent * bent;
    z[j] = (softcap == 0 ? static_cast<long double>(logit) : softcap * bent) * 1.25L;
    max = std::fmax(max, z[j]);
  }
  for (int64_t j = 0; j < size; ++j) {
    const long double x = z[j] - max, e = std::exp(x);
    sum += e, moment += e == 0 ? 0 : e * x;
    const long double grad = (e == 0 ? 0 : e * (-0.3L + 0.2L * x)) + (j == target ? 0.7L : 0);
    expect("gradient", size, grad * cap[j], gradient[j], 20 * tolerance);
  }
  expect("max", size, max, found.max, tolerance);
  expect("sum", size, sum, found.sum, 20 * tolerance);
  expect("moment", size, moment, found.moment, 20 * tolerance);
  expect("target", size, z[target], found.target, tolerance);
}

int main() {
  std::mt19937 random(0);
  for (const auto limit : present_isas()) {
    fgrl::isa_limit = limit;
    for (int64_t size = 1; size < 2100; size += size < 70 || (size > 1020 && size < 1045) ? 1 : 37) {
      for (const bool has_bias : {false, true}) {
        for (const double softcap : {0.0, 5.0}) {
          check<float>(size, has_bias, softcap, random);
          check<double>(size, has_bias, softcap, random);
        }
      }
    }
  }
  std::puts("every instruction set agrees with the definition");
}
