// Registers the CPU implementation of `token_reward_head`, whose schemas are in fgrl/ops/token_reward_head.py.
#include "linear/token_reward_head.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "tensors/tensors.h"

namespace {

using namespace fgrl;

struct Nothing {};

// Hidden states as rows [rows][width] whose elements are side by side, in one of the types that are read in place.
class Rows {
 public:
  Rows(const Tensor& hidden, ScalarType computed_in) : rows_(hidden) {
    STD_TORCH_CHECK(hidden.is_cpu() && hidden.dim() > 0, "hidden must be on the CPU and have a dimension");
    const ScalarType dtype = hidden.scalar_type();
    const bool is_half = dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
    if (computed_in == ScalarType::Double || !is_half) rows_ = torch::stable::to(rows_, computed_in);
    width_ = hidden.size(hidden.dim() - 1), count_ = 1;
    for (int64_t i = 0; i + 1 < hidden.dim(); ++i) count_ *= hidden.size(i);
    rows_ = torch::stable::reshape(rows_, {count_, width_});
    if (width_ > 1 && rows_.stride(1) != 1) rows_ = torch::stable::contiguous(rows_);
  }

  int64_t count() const { return count_; }
  int64_t width() const { return width_; }
  ScalarType dtype() const { return rows_.scalar_type(); }

  template <typename E>
  HiddenRows<E> as() const {
    return {static_cast<const E*>(rows_.const_data_ptr()), rows_.stride(0)};
  }

  // Calls `run` with an element of the type of the hidden states.
  template <typename Run>
  void with_element(const Run& run) const {
    switch (dtype()) {
      case ScalarType::Double: return run(double{});
      case ScalarType::BFloat16: return run(BFloat16{});
      case ScalarType::Half: return run(Half{});
      default: return run(float{});
    }
  }

 private:
  Tensor rows_;
  int64_t count_, width_;
};

int64_t heads_of(const Tensor& weight) {
  const int64_t heads = weight.dim() == 1 ? 1 : weight.size(0);
  STD_TORCH_CHECK(heads <= MAX_HEADS, "weight must have at most 32 heads");
  return heads;
}

Tensor no_elements(ScalarType dtype) { return torch::stable::empty({0}, dtype); }

std::tuple<Tensor, Tensor, Tensor> token_reward_head(const Tensor& hidden, const Tensor& weight,
                                                     const OptionalTensor& bias, const OptionalTensor& norm_weight,
                                                     double norm_eps) {
  const ScalarType dtype = compute_dtype(hidden, weight, bias, norm_weight);
  const Rows rows(hidden, dtype);
  std::vector<int64_t> shape(hidden.sizes().begin(), hidden.sizes().end() - 1);
  Tensor rstd = norm_weight ? torch::stable::empty(shape, dtype) : no_elements(dtype);
  if (weight.dim() == 2) shape.push_back(weight.size(0));
  Tensor rewards = torch::stable::empty(shape, dtype);
  Tensor scores = norm_weight ? torch::stable::empty(shape, dtype) : no_elements(dtype);
  rows.with_element([&](auto element) {
    using E = decltype(element);
    using T = Compute<E>;
    Inputs inputs(dtype);
    const int64_t heads = heads_of(weight), width = rows.width();
    const HeadWeights<E, DotType<E>> weights(inputs.read<T>(weight, heads * width), inputs.read<T>(norm_weight, width),
                                             heads, width, column_order<E>());
    HeadForward<E> of{rows.as<E>(), weights, inputs.read<T>(bias, heads), norm_eps, data<T>(rewards), nullptr, nullptr};
    if (norm_weight) of.scores = data<T>(scores), of.rstd = data<T>(rstd);
    constexpr int64_t ROWS_OF_A_TASK = 64;
    const int64_t tasks = (rows.count() + ROWS_OF_A_TASK - 1) / ROWS_OF_A_TASK;
    for_each_task<Nothing>(tasks, rows.count() * width * heads / 8, [&](Nothing&, int64_t task) {
      head_forward(of, task * ROWS_OF_A_TASK, std::min(rows.count(), (task + 1) * ROWS_OF_A_TASK));
    });
  });
  return {rewards, scores, rstd};
}

std::vector<Tensor> token_reward_head_backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                                               const OptionalTensor& bias, const OptionalTensor& norm_weight,
                                               const Tensor& scores, const Tensor& rstd, bool needs_hidden,
                                               bool needs_weight, bool needs_bias, bool needs_norm_weight) {
  const ScalarType dtype = compute_dtype(hidden, weight, bias, norm_weight);
  const Rows rows(hidden, dtype);
  const int64_t heads = heads_of(weight), width = rows.width(), count = rows.count();
  // So many rows that their sums are little beside their hidden states, and so few that fp32 holds the sums exactly enough.
  const int64_t rows_of_a_task = std::max<int64_t>(128, 32 * heads);
  const int64_t tasks = (count + rows_of_a_task - 1) / rows_of_a_task;

  Tensor hidden_grad = needs_hidden ? empty_like(hidden, rows.dtype()) : no_elements(rows.dtype());
  Tensor weight_grad = needs_weight ? empty_like(weight, dtype) : no_elements(dtype);
  Tensor bias_grad = needs_bias ? empty_like(*bias, dtype) : no_elements(dtype);
  Tensor norm_weight_grad = needs_norm_weight ? empty_like(*norm_weight, dtype) : no_elements(dtype);
  rows.with_element([&](auto element) {
    using E = decltype(element);
    using T = Compute<E>;
    Inputs inputs(dtype);
    const T* const plain = inputs.read<T>(weight, heads * width);
    const T* const norm = inputs.read<T>(norm_weight, width);
    const HeadWeights<E> weights(plain, norm, heads, width, column_order<E>());
    HeadBackward<E> of{rows.as<E>(), weights, inputs.read<T>(grad, count * heads), nullptr, nullptr, nullptr};
    if (norm_weight) of.scores = inputs.read<T>(scores, count * heads), of.rstd = inputs.read<T>(rstd, count);
    if (needs_hidden) of.hidden_grad = data<E>(hidden_grad);

    const bool sums_hidden = needs_weight || needs_norm_weight;
    const int64_t size = sums_hidden ? heads * weights.pitch : 0;
    Tensor moments = torch::stable::empty({tasks * size}, dtype);
    T* const moments_of = data<T>(moments);
    std::vector<double> grad_sums(static_cast<size_t>(tasks * heads));
    for_each_task<Nothing>(tasks, count * width * heads / 8, [&](Nothing&, int64_t task) {
      const HeadSums<T> sums{sums_hidden ? moments_of + task * size : nullptr, grad_sums.data() + task * heads};
      head_backward(of, task * rows_of_a_task, std::min(count, (task + 1) * rows_of_a_task), sums);
    });

    if (needs_bias) {
      for (int64_t k = 0; k < heads; ++k) {
        double sum = 0;
        for (int64_t task = 0; task < tasks; ++task) sum += grad_sums[task * heads + k];
        data<T>(bias_grad)[k] = static_cast<T>(sum);
      }
    }
    if (!sums_hidden) return;
    const HeadWeightGrads<E> grads{weights, plain, norm, needs_weight ? data<T>(weight_grad) : nullptr,
                                   needs_norm_weight ? data<T>(norm_weight_grad) : nullptr};
    constexpr int64_t COLUMNS = 512;
    for_each_task<Nothing>((width + COLUMNS - 1) / COLUMNS, tasks * size / 8, [&](Nothing&, int64_t task) {
      grads.reduce(moments_of, tasks, task * COLUMNS, std::min(width, (task + 1) * COLUMNS));
    });
  });

  std::vector<Tensor> found;
  if (needs_hidden) found.push_back(torch::stable::to(hidden_grad, hidden.scalar_type()));
  if (needs_weight) found.push_back(torch::stable::to(weight_grad, weight.scalar_type()));
  if (needs_bias) found.push_back(torch::stable::to(bias_grad, bias->scalar_type()));
  if (needs_norm_weight) found.push_back(torch::stable::to(norm_weight_grad, norm_weight->scalar_type()));
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fgrl, CPU, library) {
  library.impl("token_reward_head", TORCH_BOX(&token_reward_head));
  library.impl("token_reward_head_backward", TORCH_BOX(&token_reward_head_backward));
}
