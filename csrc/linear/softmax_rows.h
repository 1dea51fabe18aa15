// One row of logits: the statistics of its softmax, and the gradient of functions of them. Torch-free.
//
//     z = (logit + bias), soft-capped as c * tanh(z / c), times 1 / temperature
//     m = max z,   s = sum e^(z - m),   w = sum e^(z - m) (z - m)
//
// from which follow logp = z_target - m - log s and entropy = log s - w / s. The gradient by a logit of any function of
// these is e^x (a + b x) + [it is the target] c with x = z - m, times the derivative of the soft-cap: see
// fgrl/ops/_linear.py for a, b and c.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "simd/half.h"
#include "simd/vector.h"

namespace fgrl {

template <typename T>
struct LogitScale {
  T inverse_temperature;
  T softcap;  // 0 for none
};

template <typename T>
struct RowStatistics {
  T max, sum, moment;
  T target;  // z of the target, 0 when it is not in this row
};

template <typename T>
struct RowGrad {
  T max;
  T constant, linear, target;  // a, b and c of the gradient
};

#define FGRL_KERNEL_FILE "linear/softmax_rows.inc"
#include "simd/for_each_isa.inc"

// The target is not in this row when it is outside [0, size). `bias` may be null.
template <typename T>
RowStatistics<T> row_statistics(const T* logits, const T* bias, int64_t size, int64_t target,
                                const LogitScale<T>& scale) {
  return FGRL_DISPATCH(row_statistics, T)(logits, bias, size, target, scale);
}

// The gradient by the logits, which may take their place, also in a shorter format: row for row, from where each begins.
template <typename E>
void row_gradient(const Compute<E>* logits, const Compute<E>* bias, int64_t size, int64_t target,
                  const LogitScale<Compute<E>>& scale, const RowGrad<Compute<E>>& grad, E* out) {
  FGRL_DISPATCH(row_gradient, E)(logits, bias, size, target, scale, grad, out);
}

}  // namespace fgrl
