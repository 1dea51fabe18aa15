// The clipped value loss: loss, statistics and gradient of a block of tokens in one pass. Torch-free.
//
// For each valid token (fgrl/reference/value_loss.py), with weight v by its sequence:
//
//     near = clip(V, V_old - clip, V_old + clip)
//     loss = v * max((V - R)^2, (near - R)^2) / 2
//     d loss / d V = v * (V - R) where the first is not the smaller, else 0: near is then one of the bounds
#pragma once

#include <array>

#include "losses/aggregate.h"
#include "tensors/rows.h"

namespace fgrl {

// The tensors of one call, contiguous; `old_values` is null when nothing is clipped.
template <typename T>
struct ValueArguments {
  const T *values, *old_values, *returns;
  TokenMask mask;
  T clip;
  T* values_grad;

  std::array<const T**, 3> inputs() { return {&values, &old_values, &returns}; }
  std::array<T**, 1> outputs() { return {&values_grad}; }
};

// value_loss; clip_fraction, value_mean, return_mean, mean_squared_error; tokens
using ValueTotals = Totals<1, 4, false>;

}  // namespace fgrl
