// Registers the CPU product of the linear_* ops, whose schema is in fgrl/ops/_matmul.py.
#include "linear/matmul.h"

#include <torch/csrc/stable/library.h>

#include "tensors/tensors.h"

namespace {

using namespace fgrl;

template <typename T>
Matrix<const T> matrix(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.size(0), tensor.size(1), tensor.stride(0),
          tensor.stride(1)};
}

template <typename E, typename Out>
void multiply(const Tensor& a, const Tensor& b, bool add, Tensor& out) {
  const Matrix<const E> left = matrix<E>(a), right = matrix<E>(b);
  const Matrix<Out> result{data<Out>(out), out.size(0), out.size(1), out.stride(0), 1};
  const MatmulBlocks blocks(result.rows, result.columns, torch::stable::get_num_threads());
  const int64_t work = result.rows * result.columns * left.columns / 16;
  for_each_task<MatmulScratch<E>>(blocks.down * blocks.across, work, [&](MatmulScratch<E>& scratch, int64_t i) {
    const int64_t row = i % blocks.down * blocks.height, column = i / blocks.down * blocks.width;
    multiply_block(left.part(row, 0, blocks.height, left.columns), right.part(0, column, right.rows, blocks.width),
                   result.part(row, column, blocks.height, blocks.width), add, scratch);
  });
}

void matmul(const Tensor& a, const Tensor& b, bool add, Tensor out) {
  const ScalarType dtype = a.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || (dtype == ScalarType::BFloat16 && multiplies_bf16()),
                  "a must be float32, or bfloat16 where the processor has AVX512_BF16");
  STD_TORCH_CHECK(b.scalar_type() == dtype, "b must have the dtype of a");
  const bool rounds = out.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(rounds ? dtype == ScalarType::BFloat16 && !add : out.scalar_type() == ScalarType::Float,
                  "out must be float32, or bfloat16 where a is and nothing is added to");
  for (const Tensor& tensor : {a, b, out}) {
    STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() == 2, "a, b and out must be matrices on the CPU");
  }
  STD_TORCH_CHECK(a.size(1) == b.size(0) && a.size(0) == out.size(0) && b.size(1) == out.size(1) && out.stride(1) == 1,
                  "a, b and out must have shapes that fit");
  if (dtype == ScalarType::Float) {
    multiply<float, float>(a, b, add, out);
  } else if (rounds) {
    multiply<BFloat16, BFloat16>(a, b, add, out);
  } else {
    multiply<BFloat16, float>(a, b, add, out);
  }
}

// Whether to multiply this dtype here. In fp32 not where MKL is as fast: it makes good use of Intel's processors, and of
// AVX2 on all. bf16 wherever it can be.
bool prefers_matmul(ScalarType dtype) {
#ifdef FGRL_X86
  if (dtype == ScalarType::Float) return isa() >= Isa::AVX512 && !__builtin_cpu_is("intel");
#endif
  return dtype == ScalarType::BFloat16 && multiplies_bf16();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fgrl, CPU, library) { library.impl("matmul", TORCH_BOX(&matmul)); }

STABLE_TORCH_LIBRARY_IMPL(fgrl, CompositeExplicitAutograd, library) {
  library.impl("prefers_matmul", TORCH_BOX(&prefers_matmul));
}
