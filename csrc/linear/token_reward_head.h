// The token reward head: a few dot products with every row of hidden states, behind an RMSNorm on request. Torch-free.
//
// With v_k = norm_weight * w_k, and for a row h of `width` hidden states (fgrl/reference/token_reward_head.py):
//
//     rstd = 1 / sqrt(mean(h^2) + eps),   z_k = rstd * (h . v_k),   r_k = z_k + b_k          (rstd = 1 without a norm)
//
// and, from the gradients g_k of the rewards, without another sum over the row:
//
//     dh  = rstd * (sum_k g_k * v_k - h * rstd * c),   c = sum_k g_k * z_k / width           (c = 0 without a norm)
//     M_k = sum over rows of g_k * rstd * h,   dw_k = norm_weight * M_k,   dnorm_weight = sum_k w_k * M_k,   db_k = sum g_k
//
// Rows are worked on four at a time, for which a weight is loaded once. The sums over rows are taken in two stages, of
// the rows of a task and of the tasks, in an order that depends on nothing but the shape.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "simd/half.h"
#include "simd/vector.h"

namespace fgrl {

constexpr int ROWS_AT_ONCE = 4, HEADS_AT_ONCE = 4, MAX_HEADS = 32;

// What dot products with rows of E are summed in: of 16-bit elements float, which rounds less than they do, else double,
// so that a reward is rounded once however many terms cancel. Of float that takes no longer where rows come from memory.
template <typename E>
using DotType = std::conditional_t<sizeof(E) == 2, float, double>;

// v [heads][width] for rows of E, in the kernels' order of columns and with 0 past the width up to the end of a step.
// The rows are so far apart that no two of them start at the same place of a cache's way.
template <typename E, typename T = Compute<E>>
struct HeadWeights {
  int64_t heads, width, pitch;
  ColumnOrder<E> order;
  std::vector<T> data;

  HeadWeights(const Compute<E>* weight, const Compute<E>* norm_weight, int64_t heads_, int64_t width_,
              ColumnOrder<E> order_)
      : heads(heads_), width(width_), pitch(padded(width_) + 16), order(order_), data(static_cast<size_t>(heads * pitch)) {
    for (int64_t k = 0; k < heads; ++k) {
      for (int64_t d = 0; d < width; ++d) {
        const T w = static_cast<T>(weight[k * width + d]);
        data[k * pitch + order.index(d)] = norm_weight == nullptr ? w : w * static_cast<T>(norm_weight[d]);
      }
    }
  }

  static int64_t padded(int64_t columns) {
    constexpr int64_t STEP = ColumnOrder<E>::LONGEST_STEP;
    return (columns + STEP - 1) / STEP * STEP;
  }
};

// Rows of hidden states, `stride` elements apart.
template <typename E>
struct HiddenRows {
  const E* data;
  int64_t stride;

  const E* row(int64_t i) const { return data + i * stride; }
};

template <typename E, typename T = Compute<E>>
struct HeadForward {
  HiddenRows<E> hidden;
  const HeadWeights<E, DotType<E>>& weights;
  const T* bias;             // [heads], or null
  double eps;
  T* rewards;                // [rows][heads]
  T *scores, *rstd;          // [rows][heads] and [rows]: z and rstd, both null without a norm
};

template <typename E, typename T = Compute<E>>
struct HeadBackward {
  HiddenRows<E> hidden;
  const HeadWeights<E>& weights;
  const T* grad;             // [rows][heads]
  const T *scores, *rstd;    // of the forward pass, both null without a norm
  E* hidden_grad;            // [rows][width], or null
};

// What the rows of one task add up to.
template <typename T>
struct HeadSums {
  T* moments;         // M [heads][pitch], or null
  double* grad_sums;  // [heads]
};

#define FGRL_KERNEL_FILE "linear/token_reward_head.inc"
#include "simd/for_each_isa.inc"

// The rewards of the rows [begin, end).
template <typename E>
void head_forward(const HeadForward<E>& of, int64_t begin, int64_t end) {
  FGRL_DISPATCH(head_rows, E)(of, begin, end);
}

// The gradients of the rows [begin, end), and their sums.
template <typename E>
void head_backward(const HeadBackward<E>& of, int64_t begin, int64_t end, const HeadSums<Compute<E>>& sums) {
  FGRL_DISPATCH(head_rows_backward, E)(of, begin, end, sums);
}

template <typename E>
ColumnOrder<E> column_order() {
  return {FGRL_DISPATCH(lanes, Compute<E>)()};
}

// The gradients of the weights from what the tasks' rows added up to, moments [tasks][heads][pitch]. Either may be null.
template <typename E, typename T = Compute<E>>
struct HeadWeightGrads {
  const HeadWeights<E>& weights;
  const T *weight, *norm_weight;  // w [heads][width], and [width] or null
  T *weight_grad, *norm_weight_grad;

  // For the columns [begin, end), where `begin` is a multiple of the longest step.
  void reduce(const T* moments, int64_t tasks, int64_t begin, int64_t end) const {
    const int64_t size = weights.padded(end - begin), width = weights.width;
    if (norm_weight_grad != nullptr) std::fill(norm_weight_grad + begin, norm_weight_grad + end, T(0));
    std::vector<T> sums(static_cast<size_t>(size));
    for (int64_t k = 0; k < weights.heads; ++k) {
      std::fill(sums.begin(), sums.end(), T(0));
      for (int64_t task = 0; task < tasks; ++task) {
        const T* const part = moments + (task * weights.heads + k) * weights.pitch + begin;
        for (int64_t i = 0; i < size; ++i) sums[i] += part[i];
      }
      for (int64_t d = begin; d < end; ++d) {
        const T sum = sums[weights.order.index(d - begin)];
        if (weight_grad != nullptr) weight_grad[k * width + d] = norm_weight == nullptr ? sum : norm_weight[d] * sum;
        if (norm_weight_grad != nullptr) norm_weight_grad[d] += weight[k * width + d] * sum;
      }
    }
  }
};

}  // namespace fgrl
