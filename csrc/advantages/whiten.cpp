// Registers the CPU implementations of `whiten`'s two steps, whose schemas are in fgrl/ops/whiten.py.
#include "advantages/whiten.h"

#include <torch/csrc/stable/library.h>

#include "tensors/tensors.h"

namespace {

using namespace fgrl;

// Calls `run(block, begin, end)` for every block of `tokens`, on as many threads as they are worth.
template <typename Run>
void for_each_block(int64_t tokens, const Run& run) {
  struct Nothing {};
  const int64_t blocks = (tokens + WHITEN_BLOCK - 1) / WHITEN_BLOCK;
  for_each_task<Nothing>(blocks, tokens, [&](Nothing&, int64_t block) {
    run(block, block * WHITEN_BLOCK, std::min(tokens, (block + 1) * WHITEN_BLOCK));
  });
}

Tensor moments(const Tensor& advantages, const OptionalTensor& mask) {
  Tensor result = torch::stable::empty({3}, ScalarType::Double);
  with_type(compute_dtype(advantages), [&](auto zero) {
    using T = decltype(zero);
    const int64_t tokens = advantages.numel();
    Inputs inputs(compute_dtype(advantages));
    const T* from = inputs.read<T>(advantages, tokens);
    const TokenMask valid = inputs.mask(mask, tokens);
    std::vector<double> parts(static_cast<size_t>(3 * ((tokens + WHITEN_BLOCK - 1) / WHITEN_BLOCK)));
    for_each_block(tokens, [&](int64_t block, int64_t begin, int64_t end) {
      block_moments(from, valid, begin, end, parts.data() + 3 * block);
    });
    double* total = data<double>(result);
    std::fill(total, total + 3, 0.0);
    for (size_t i = 0; i < parts.size(); ++i) total[i % 3] += parts[i];
  });
  return result;
}

Tensor whiten_tokens(const Tensor& advantages, const OptionalTensor& mask, const Tensor& moments) {
  STD_TORCH_CHECK(moments.scalar_type() == ScalarType::Double, "moments must be float64");
  const ScalarType dtype = compute_dtype(advantages);
  Tensor whitened = empty_like(advantages, dtype);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t tokens = advantages.numel();
    Inputs inputs(dtype);
    const T* from = inputs.read<T>(advantages, tokens);
    const TokenMask valid = inputs.mask(mask, tokens);
    const Whitening by(Inputs(ScalarType::Double).read<double>(moments, 3));
    for_each_block(tokens, [&](int64_t, int64_t begin, int64_t end) {
      block_whiten(from, valid, begin, end, by, data<T>(whitened));
    });
  });
  return whitened;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fgrl, CPU, library) {
  library.impl("moments", TORCH_BOX(&moments));
  library.impl("whiten_tokens", TORCH_BOX(&whiten_tokens));
}
