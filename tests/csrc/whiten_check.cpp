// Every instruction set's moments and whitening against the definition in long double, at all small sizes and around a
// block's edge. Memory is exactly as large as it must be, for the sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "advantages/whiten.h"
#include "isas.h"

static void expect(bool right, const char* what, int64_t size, size_t bytes) {
  if (right) return;
  std::printf("%s of %ld tokens of %zu bytes, isa %d\n", what, static_cast<long>(size), bytes,
              static_cast<int>(fgrl::isa()));
  std::exit(1);
}

template <typename T>
static void check(int64_t size, bool masked, std::mt19937& random) {
  std::normal_distribution<double> normal(100, 1);
  std::vector<T> advantages(size), whitened(size);
  std::vector<uint8_t> mask(size);
  long double count = 0, sum = 0, squares = 0;
  for (int64_t t = 0; t < size; ++t) {
    mask[t] = !masked || random() % 3 != 0;
    advantages[t] = static_cast<T>(mask[t] ? normal(random) : NAN);
    if (mask[t]) count += 1, sum += advantages[t], squares += static_cast<long double>(advantages[t]) * advantages[t];
  }
  fgrl::TokenMask valid;
  if (masked) valid.data = mask.data();
  double moments[3];
  fgrl::block_moments(advantages.data(), valid, 0, size, moments);
  expect(moments[0] == count, "count", size, sizeof(T));
  expect(std::fabs(moments[1] - sum) <= 1e-12L * sum, "sum", size, sizeof(T));
  expect(std::fabs(moments[2] - squares) <= 1e-12L * squares, "sum of squares", size, sizeof(T));

  const fgrl::Whitening by(moments);
  fgrl::block_whiten(advantages.data(), valid, 0, size, by, whitened.data());
  for (int64_t t = 0; t < size; ++t) {
    const long double wanted = mask[t] ? (static_cast<long double>(advantages[t]) - by.mean) * by.scale : 0;
    const long double rounding = (sizeof(T) == 4 ? 6e-8L : 1e-15L) * std::fabs(wanted);
    expect(std::fabs(whitened[t] - wanted) <= rounding, "whitening", size, sizeof(T));
  }
}

int main() {
  std::mt19937 random(0);
  for (const auto limit : present_isas()) {
    fgrl::isa_limit = limit;
    for (int64_t size = 0; size <= fgrl::WHITEN_BLOCK; size += size < 70 || size > fgrl::WHITEN_BLOCK - 20 ? 1 : 307) {
      for (const bool masked : {false, true}) check<float>(size, masked, random), check<double>(size, masked, random);
    }
  }
  std::puts("every instruction set agrees with the definition");
}
