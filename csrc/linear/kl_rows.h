// The divergence between two rows of logits, a student's and a teacher's, and its gradient by the student's. Torch-free.
//
//     log p = z - m - log s of the student, log q of the teacher, with z, m and s as in softmax_rows.h
//     forward   sum q (log q - log p)                       gradient by z:   p - q
//     reverse   sum p (log p - log q)                                        p (log p - log q - reverse)
//     jsd       beta sum q (log q - log m) + (1 - beta) J                    (1 - beta) p (log p - log m - J)
//               with m = beta q + (1 - beta) p and J = sum p (log p - log m)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "linear/softmax_rows.h"
#include "simd/half.h"
#include "simd/vector.h"

namespace fgrl {

// In the order of `Divergence` in fgrl/types.py.
enum class Divergence { FORWARD, REVERSE, JSD };

template <typename T>
struct KlSide {
  const T* logits;
  const T* bias;  // may be null
  LogitScale<T> scale;
  T max, log_sum;  // m and log s
};

template <typename T>
struct KlStatistics {
  T divergence;
  T student;  // the sum in the student's gradient: the reverse divergence, or J
};

template <typename T>
struct KlGrad {
  T student;  // of KlStatistics
  T scale;    // what the gradient is multiplied by
};

#define FGRL_KERNEL_FILE "linear/kl_rows.inc"
#include "simd/for_each_isa.inc"

template <typename T>
KlStatistics<T> kl_statistics(const KlSide<T>& student, const KlSide<T>& teacher, int64_t size, Divergence divergence,
                              T beta) {
  return FGRL_DISPATCH(kl_statistics, T)(student, teacher, size, divergence, beta);
}

// The gradient by the student's logits, which may take their place, also in a shorter format: row for row, from where
// each begins.
template <typename E>
void kl_gradient(const KlSide<Compute<E>>& student, const KlSide<Compute<E>>& teacher, int64_t size,
                 Divergence divergence, Compute<E> beta, const KlGrad<Compute<E>>& grad, E* out) {
  FGRL_DISPATCH(kl_gradient, E)(student, teacher, size, divergence, beta, grad, out);
}

}  // namespace fgrl
