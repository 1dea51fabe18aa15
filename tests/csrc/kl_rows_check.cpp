// Every instruction set's divergence of two rows of logits against its definition in long double, at all small sizes
// and around a block's edge. Memory is exactly as large as it must be, for the sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "linear/kl_rows.h"
#include "isas.h"

using Wide = long double;

static void expect(const char* what, int64_t size, Wide wanted, double found, double tolerance) {
  if (std::fabs(wanted - found) <= tolerance * (1 + std::fabs(wanted))) return;
  std::printf("%s of %ld logits, isa %d: %Lg, not %g\n", what, static_cast<long>(size), static_cast<int>(fgrl::isa()),
              wanted, found);
  std::exit(1);
}

// Logits of a side, and its log-probabilities in long double.
template <typename T>
struct Side {
  std::vector<T> logits, bias;
  std::vector<Wide> logprobs, cap_grad;
  fgrl::KlSide<T> of;

  Side(int64_t size, bool has_bias, double softcap, std::mt19937& random)
      : logits(size), bias(has_bias ? size : 0), logprobs(size), cap_grad(size, 1) {
    std::normal_distribution<double> normal;
    for (T& logit : logits) logit = static_cast<T>(4 * normal(random));
    for (T& value : bias) value = static_cast<T>(normal(random));
    const fgrl::LogitScale<T> scale{T(1.25), static_cast<T>(softcap)};
    of = {logits.data(), has_bias ? bias.data() : nullptr, scale, 0, 0};
    Wide max = -INFINITY, sum = 0;
    for (int64_t j = 0; j < size; ++j) {
      const T logit = has_bias ? logits[j] + bias[j] : logits[j];
      const Wide bent = softcap == 0 ? 0 : std::tanh(static_cast<Wide>(logit) / softcap);
      if (softcap != 0) cap_grad[j] = 1 - bent * bent;
      logprobs[j] = (softcap == 0 ? static_cast<Wide>(logit) : softcap * bent) * 1.25L;
      max = std::fmax(max, logprobs[j]);
    }
    for (const Wide z : logprobs) sum += std::exp(z - max);
    for (Wide& z : logprobs) z -= max + std::log(sum);
    of.max = static_cast<T>(max), of.log_sum = static_cast<T>(std::log(sum));
  }
};

template <typename T>
static void check(int64_t size, bool has_bias, double softcap, std::mt19937& random) {
  const Side<T> student(size, has_bias, softcap, random), teacher(size, false, 0, random);
  const double tolerance = sizeof(T) == 4 ? 2e-5 : 1e-12;
  const T beta = T(0.25), scale = T(0.5);
  for (const auto divergence : {fgrl::Divergence::FORWARD, fgrl::Divergence::REVERSE, fgrl::Divergence::JSD}) {
    const auto found = fgrl::kl_statistics(student.of, teacher.of, size, divergence, beta);
    std::vector<T> gradient(size);
    const fgrl::KlGrad<T> grad{found.student, scale};
    fgrl::kl_gradient(student.of, teacher.of, size, divergence, beta, grad, gradient.data());
    Wide value = 0, of_student = 0;
    std::vector<Wide> mixture(size);
    for (int64_t j = 0; j < size; ++j) {
      const Wide p = std::exp(student.logprobs[j]), q = std::exp(teacher.logprobs[j]);
      mixture[j] = divergence == fgrl::Divergence::JSD ? std::log(beta * q + (1 - Wide(beta)) * p) : teacher.logprobs[j];
      of_student += p * (student.logprobs[j] - mixture[j]);
      const Wide of_teacher = q * (teacher.logprobs[j] - mixture[j]);
      value += divergence == fgrl::Divergence::FORWARD ? q * (teacher.logprobs[j] - student.logprobs[j])
               : divergence == fgrl::Divergence::REVERSE
                   ? p * (student.logprobs[j] - teacher.logprobs[j])
                   : beta * of_teacher + (1 - Wide(beta)) * p * (student.logprobs[j] - mixture[j]);
    }
    expect("divergence", size, value, found.divergence, tolerance);
    for (int64_t j = 0; j < size; ++j) {
      const Wide p = std::exp(student.logprobs[j]), q = std::exp(teacher.logprobs[j]);
      const Wide by_z = divergence == fgrl::Divergence::FORWARD
                            ? p - q
                            : p * (student.logprobs[j] - mixture[j] - of_student) *
                                  (divergence == fgrl::Divergence::JSD ? 1 - Wide(beta) : Wide(1));
      expect("gradient", size, by_z * scale * student.cap_grad[j], gradient[j], tolerance);
    }
    if constexpr (sizeof(T) == 4) {  // rounded to a shorter format, in place of the logits
      std::vector<T> place(student.logits);
      fgrl::KlSide<T> moved = student.of;
      moved.logits = place.data();
      fgrl::kl_gradient(moved, teacher.of, size, divergence, beta, grad, reinterpret_cast<fgrl::BFloat16*>(place.data()));
      std::vector<fgrl::BFloat16> rounded(size);
      std::memcpy(rounded.data(), place.data(), rounded.size() * sizeof(rounded[0]));
      for (int64_t j = 0; j < size; ++j) {
        const uint32_t bits = static_cast<uint32_t>(rounded[j].bits) << 16;
        float value_of;
        std::memcpy(&value_of, &bits, sizeof(bits));
        expect("rounded gradient", size, gradient[j], value_of, 0x1.01p-8);
      }
    }
  }
}

int main() {
  std::mt19937 random(0);
  for (const auto limit : present_isas()) {
    fgrl::isa_limit = limit;
    for (int64_t size = 1; size < 300; size += size < 70 ? 1 : 37) {
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
