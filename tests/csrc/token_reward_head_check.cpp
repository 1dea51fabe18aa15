// Every instruction set's rewards and gradients against the definition in long double, at all small widths and around a
// step's edge, and every 16-bit number there and back. Memory is exactly as large as it must be, for the sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "linear/token_reward_head.h"
#include "isas.h"

using namespace fgrl;

static void expect(bool right, const char* what, int64_t width, int64_t heads, size_t bytes) {
  if (right) return;
  std::printf("%s, width %ld, heads %ld, %zu bytes, isa %d\n", what, static_cast<long>(width), static_cast<long>(heads),
              bytes, static_cast<int>(isa()));
  std::exit(1);
}

// The formats by their definition: sign, exponent, mantissa.
static double value(float x) { return x; }
static double value(double x) { return x; }

static double by_fields(uint16_t bits, int mantissa, int bias) {
  const int exponent = (bits & 0x7fff) >> mantissa, fraction = bits & ((1 << mantissa) - 1);
  const double sign = bits & 0x8000 ? -1 : 1, one = 1 << mantissa;
  if (exponent == 2 * bias + 1) return fraction == 0 ? sign * INFINITY : NAN;
  return sign * (exponent == 0 ? std::ldexp(fraction / one, 1 - bias) : std::ldexp(1 + fraction / one, exponent - bias));
}

static double value(BFloat16 x) { return by_fields(x.bits, 7, 127); }
static double value(Half x) { return by_fields(x.bits, 10, 15); }

// Half of the distance between neighbours, relative to them, where that is more than the computation's own rounding.
template <typename E>
constexpr double ROUNDING = 0;
template <>
constexpr double ROUNDING<BFloat16> = 0x1p-8;
template <>
constexpr double ROUNDING<Half> = 0x1p-11;

template <typename E>
static E element(double x) {
  if constexpr (sizeof(E) > 2) return static_cast<E>(x);
  const float f = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof(bits));
  if constexpr (std::is_same_v<E, BFloat16>) return {static_cast<uint16_t>(bits >> 16)};
  if constexpr (std::is_same_v<E, Half>) {  // numbers of ordinary size, cut off
    return {static_cast<uint16_t>((bits >> 16 & 0x8000) | ((bits & 0x7fffffff) - (112u << 23)) >> 13)};
  }
}

template <typename E>
static void check(int64_t rows, int64_t width, int64_t heads, bool normed, std::mt19937& random) {
  using T = Compute<E>;
  const auto draw = [&] { return (random() % 2 ? 1 : -1) * std::uniform_real_distribution<double>(0.1, 2)(random); };
  const auto fill = [&](std::vector<T>& values) {
    for (T& x : values) x = static_cast<T>(draw());
  };
  const auto at = [](const auto& values, int64_t i) { return value(values[static_cast<size_t>(i)]); };
  const int64_t stride = width + 3;
  std::vector<E> hidden(static_cast<size_t>(rows > 0 ? (rows - 1) * stride + width : 0)), hidden_grad(rows * width);
  for (E& x : hidden) x = element<E>(draw());
  std::vector<T> weight(heads * width), norm(width), bias(heads), grad(rows * heads), rewards(rows * heads),
      scores(rows * heads), rstd(rows), weight_grad(heads * width), norm_grad(width);
  for (auto* values : {&weight, &norm, &bias, &grad}) fill(*values);

  const HeadWeights<E> weights(weight.data(), normed ? norm.data() : nullptr, heads, width, column_order<E>());
  const HeadWeights<E, DotType<E>> dot_weights(weight.data(), normed ? norm.data() : nullptr, heads, width,
                                               column_order<E>());
  HeadForward<E> forward{{hidden.data(), stride}, dot_weights, bias.data(), 1e-3, rewards.data(), nullptr, nullptr};
  HeadBackward<E> backward{{hidden.data(), stride}, weights, grad.data(), nullptr, nullptr, hidden_grad.data()};
  if (normed) {
    forward.scores = scores.data(), forward.rstd = rstd.data();
    backward.scores = scores.data(), backward.rstd = rstd.data();
  }
  head_forward(forward, 0, rows);
  const int64_t half = rows / 2, size = heads * weights.pitch;  // two tasks
  std::vector<T> moments(2 * size);
  std::vector<double> grad_sums(2 * heads);
  head_backward(backward, 0, half, HeadSums<T>{moments.data(), grad_sums.data()});
  head_backward(backward, half, rows, HeadSums<T>{moments.data() + size, grad_sums.data() + heads});
  const HeadWeightGrads<E> grads{weights, weight.data(), normed ? norm.data() : nullptr, weight_grad.data(),
                                 normed ? norm_grad.data() : nullptr};
  for (int64_t begin = 0; begin < width; begin += 64) grads.reduce(moments.data(), 2, begin, std::min(width, begin + 64));

  // `size` is the sum of the absolute values of what was added up.
  const auto close = [&](T found, long double wanted, long double sum, double rounding) {
    const long double tolerance = (sizeof(T) == 4 ? 4e-7L : 1e-15L) * (8 + std::sqrt(width + rows)) * sum;
    return std::fabs(wanted - found) <= tolerance + 1.01 * rounding * std::fabs(wanted);
  };
  std::vector<long double> weight_sums(heads * width), weight_sizes(heads * width), grads_sum(heads), grads_size(heads);
  for (int64_t n = 0; n < rows; ++n) {
    long double squares = 0, inverse = 1, projection = 0, projection_size = 0;
    for (int64_t d = 0; d < width; ++d) squares += std::pow(at(hidden, n * stride + d), 2);
    if (normed) inverse = 1 / std::sqrt(squares / width + 1e-3L);
    for (int64_t k = 0; k < heads; ++k) {
      long double dot = 0, dot_size = 0;
      const long double g = at(grad, n * heads + k);
      for (int64_t d = 0; d < width; ++d) {
        const long double h = at(hidden, n * stride + d) * inverse, v = at(weight, k * width + d) * (normed ? at(norm, d) : 1);
        dot += h * v, dot_size += std::fabs(h * v);
        weight_sums[k * width + d] += g * h, weight_sizes[k * width + d] += std::fabs(g * h);
      }
      projection += g * dot / width, projection_size += std::fabs(g) * dot_size / width;
      grads_sum[k] += g, grads_size[k] += std::fabs(g);
      const long double b = at(bias, k);
      expect(close(rewards[n * heads + k], dot + b, dot_size + std::fabs(b), 0), "reward", width, heads, sizeof(E));
    }
    for (int64_t d = 0; d < width; ++d) {
      long double total = 0, grad_size = 0;
      for (int64_t k = 0; k < heads; ++k) {
        const long double part = at(grad, n * heads + k) * at(weight, k * width + d) * (normed ? at(norm, d) : 1);
        total += part, grad_size += std::fabs(part);
      }
      const long double h = at(hidden, n * stride + d) * inverse;
      const long double wanted = normed ? inverse * (total - h * projection) : total;
      const long double sum = inverse * (grad_size + std::fabs(h) * projection_size);
      expect(close(static_cast<T>(at(hidden_grad, n * width + d)), wanted, sum, ROUNDING<E>),
             "gradient of hidden", width, heads, sizeof(E));
    }
  }
  for (int64_t d = 0; d < width; ++d) {
    long double norm_sum = 0, norm_size = 0;
    for (int64_t k = 0; k < heads; ++k) {
      const int64_t i = k * width + d;
      const long double w = at(weight, i), by = normed ? at(norm, d) : 1;
      expect(close(weight_grad[i], by * weight_sums[i], std::fabs(by) * weight_sizes[i], 0), "gradient of weight", width,
             heads, sizeof(E));
      norm_sum += w * weight_sums[i], norm_size += std::fabs(w) * weight_sizes[i];
    }
    if (normed) expect(close(norm_grad[d], norm_sum, norm_size, 0), "gradient of norm_weight", width, heads, sizeof(E));
  }
  for (int64_t k = 0; k < heads; ++k) {
    const T found = static_cast<T>(grad_sums[k] + grad_sums[heads + k]);
    expect(close(found, grads_sum[k], grads_size[k], 0), "gradient of bias", width, heads, sizeof(E));
  }
}

// Reads every number as a hidden state of width 1 and writes it as a gradient: exact both ways.
template <typename E>
static void check_every_number() {
  for (uint32_t bits = 0; bits < 1 << 16; ++bits) {
    const E hidden{static_cast<uint16_t>(bits)};
    const float one = 1;
    float reward;
    double sums[2];
    const HeadWeights<E> weights(&one, nullptr, 1, 1, column_order<E>());
    head_forward(HeadForward<E>{{&hidden, 1}, weights, nullptr, 0, &reward, nullptr, nullptr}, 0, 1);
    const double wanted = value(hidden);
    expect(std::isnan(wanted) ? std::isnan(reward) : reward == wanted, "decoding", bits, 1, sizeof(E));
    E written;
    std::vector<float> moments(weights.pitch);
    head_backward(HeadBackward<E>{{&hidden, 1}, weights, &reward, nullptr, nullptr, &written}, 0, 1,
                  HeadSums<float>{moments.data(), sums});
    expect(std::isnan(wanted) ? std::isnan(value(written)) : value(written) == wanted, "encoding", bits, 1, sizeof(E));
  }
}

int main() {
  std::mt19937 random(0);
  for (const auto limit : present_isas()) {
    isa_limit = limit;
    check_every_number<BFloat16>();
    check_every_number<Half>();
    for (int64_t width = 1; width < 200; width += width < 70 ? 1 : 31) {
      for (const int64_t heads : {1, 2, 5, 32}) {
        const bool normed = random() % 2;
        const int64_t rows = random() % 11;
        check<float>(rows, width, heads, normed, random), check<double>(rows, width, heads, normed, random);
        check<BFloat16>(rows, width, heads, normed, random), check<Half>(rows, width, heads, normed, random);
      }
    }
  }
  std::puts("every instruction set agrees with the definition");
}
