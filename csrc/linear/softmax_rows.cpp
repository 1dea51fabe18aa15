// Registers the CPU implementations of the softmax steps of the linear_* ops, whose schemas are in fgrl/ops/_linear.py.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <type_traits>

#include "linear/softmax_rows.h"
#include "tensors/tensors.h"

namespace {

using namespace fgrl;

// What both steps read: rows of logits, some of a larger buffer, and the target of each.
template <typename T>
struct Rows {
  const T* logits;
  int64_t count, size, stride;
  const T* bias;
  const int64_t* targets;
  LogitScale<T> scale;

  Rows(Inputs& inputs, Inputs& ids, const Tensor& of, const OptionalTensor& bias_, const Tensor& targets_,
       double temperature, std::optional<double> softcap)
      : logits(static_cast<const T*>(of.const_data_ptr())), count(of.size(0)), size(of.size(1)), stride(of.stride(0)) {
    STD_TORCH_CHECK(of.is_cpu() && of.dim() == 2 && of.stride(1) == 1, "logits must be rows on the CPU");
    bias = inputs.read<T>(bias_, size);
    targets = ids.read<int64_t>(targets_, count);
    scale = {static_cast<T>(1 / temperature), static_cast<T>(softcap.value_or(0))};
  }

  template <typename Run>
  void for_each(const Run& run) const {
    struct Stateless {};
    for_each_task<Stateless>(count, count * size, [&](Stateless&, int64_t i) { run(logits + i * stride, i); });
  }
};

Tensor logit_statistics(const Tensor& logits, const OptionalTensor& bias, const Tensor& targets, double temperature,
                        std::optional<double> softcap) {
  const ScalarType dtype = logits.scalar_type();
  Tensor statistics = torch::stable::empty({4, 1, logits.size(0)}, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    Inputs inputs(dtype), ids(ScalarType::Long);
    const Rows<T> rows(inputs, ids, logits, bias, targets, temperature, softcap);
    T* to = data<T>(statistics);
    rows.for_each([&](const T* row, int64_t i) {
      const RowStatistics<T> found = row_statistics<T>(row, rows.bias, rows.size, rows.targets[i], rows.scale);
      const int64_t n = rows.count;
      to[i] = found.max, to[n + i] = found.sum, to[2 * n + i] = found.moment, to[3 * n + i] = found.target;
    });
  });
  return statistics;
}

void logit_gradient(const Tensor& logits, const OptionalTensor& bias, const Tensor& targets, const Tensor& grad,
                    double temperature, std::optional<double> softcap, Tensor out) {
  const ScalarType dtype = logits.scalar_type(), out_dtype = out.scalar_type();
  STD_TORCH_CHECK(out_dtype == dtype || (out_dtype == ScalarType::BFloat16 && dtype == ScalarType::Float),
                  "out must have the dtype of the logits, or bfloat16 for float32 logits");
  STD_TORCH_CHECK(out.size(0) == logits.size(0) && out.size(1) == logits.size(1) && out.stride(1) == 1,
                  "out must be like the logits");
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    Inputs inputs(dtype), ids(ScalarType::Long);
    const Rows<T> rows(inputs, ids, logits, bias, targets, temperature, softcap);
    const T* from = inputs.read<T>(grad, 4 * rows.count);
    const int64_t n = rows.count, stride = out.stride(0);
    const auto write = [&](auto* to) {
      rows.for_each([&](const T* row, int64_t i) {
        row_gradient(row, rows.bias, rows.size, rows.targets[i], rows.scale,
                     {from[i], from[n + i], from[2 * n + i], from[3 * n + i]}, to + i * stride);
      });
    };
    if (out_dtype == dtype) return write(data<T>(out));
    if constexpr (std::is_same_v<T, float>) write(data<BFloat16>(out));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fgrl, CPU, library) {
  library.impl("logit_statistics", TORCH_BOX(&logit_statistics));
  library.impl("logit_gradient", TORCH_BOX(&logit_gradient));
}
