// Registers the CPU implementation of `is_binary`, whose schema is in fgrl/ops/_library.py.
#include "tensors/binary.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <atomic>
#include <cstdint>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool is_binary(const Tensor& values) {
  STD_TORCH_CHECK(values.is_cpu() && values.is_contiguous(), "values must be a contiguous CPU tensor");
  std::atomic<bool> result{true};
  const auto look = [&](auto element) {
    using Element = decltype(element);
    const Element* data = static_cast<const Element*>(values.const_data_ptr());
    torch::stable::parallel_for(0, values.numel(), 1 << 17, [&](int64_t begin, int64_t end) {
      if (!fgrl::is_binary(data + begin, end - begin)) result = false;
    });
  };
  switch (values.scalar_type()) {
    case ScalarType::Byte: look(uint8_t{}); break;
    case ScalarType::Char: look(int8_t{}); break;
    case ScalarType::Short: look(int16_t{}); break;
    case ScalarType::Int: look(int32_t{}); break;
    case ScalarType::Long: look(int64_t{}); break;
    case ScalarType::Float: look(float{}); break;
    case ScalarType::Double: look(double{}); break;
    default: STD_TORCH_CHECK(false, "values must be of an integer type, float32 or float64");
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fgrl, CPU, library) { library.impl("is_binary", TORCH_BOX(&is_binary)); }
