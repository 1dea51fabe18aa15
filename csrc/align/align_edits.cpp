// Registers the CPU implementation of `align_edits`, whose schema is in fgrl/ops/align_edits.py.
#include "align/align_edits.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <tuple>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The Python op checks its arguments and names what is wrong; these checks keep a direct call within bounds.
void check_packed(const Tensor& tokens, const Tensor& cu_seqlens, const char* side) {
  STD_TORCH_CHECK(tokens.is_cpu() && tokens.dim() == 1 && tokens.is_contiguous(), side,
                  " must be a contiguous 1-D CPU tensor");
  STD_TORCH_CHECK(cu_seqlens.is_cpu() && cu_seqlens.dim() == 1 && cu_seqlens.is_contiguous() &&
                      cu_seqlens.scalar_type() == ScalarType::Long && cu_seqlens.numel() > 0,
                  side, "_cu_seqlens must be a contiguous, non-empty 1-D int64 CPU tensor");
  const int64_t* bounds = cu_seqlens.const_data_ptr<int64_t>();
  const int64_t batch = cu_seqlens.numel() - 1;
  STD_TORCH_CHECK(bounds[0] == 0 && bounds[batch] == tokens.numel(), side,
                  "_cu_seqlens must start at 0 and end at the number of tokens");
  for (int64_t i = 0; i < batch; ++i) {
    STD_TORCH_CHECK(bounds[i] <= bounds[i + 1], side, "_cu_seqlens must not decrease");
    STD_TORCH_CHECK(bounds[i + 1] - bounds[i] < (int64_t{1} << 30), side, " sequences must be shorter than 2^30");
  }
}

Tensor empty(int64_t size, ScalarType dtype) { return torch::stable::empty({size}, dtype); }

std::tuple<Tensor, Tensor, Tensor> align_edits(const Tensor& original, const Tensor& original_cu_seqlens,
                                               const Tensor& edited, const Tensor& edited_cu_seqlens,
                                               int64_t num_threads, int64_t algorithm) {
  check_packed(original, original_cu_seqlens, "original");
  check_packed(edited, edited_cu_seqlens, "edited");
  STD_TORCH_CHECK(original.scalar_type() == edited.scalar_type(), "original and edited must have one dtype");
  STD_TORCH_CHECK(original_cu_seqlens.numel() == edited_cu_seqlens.numel(),
                  "original and edited must have the same number of sequences");
  STD_TORCH_CHECK(algorithm >= 0 && algorithm <= 3, "algorithm is ", algorithm, "; it must be 0 to 3");
  const int64_t batch = original_cu_seqlens.numel() - 1;
  const int64_t threads = num_threads > 0 ? num_threads : torch::stable::get_num_threads();

  Tensor distance = empty(batch, ScalarType::Long);
  Tensor original_ops = empty(original.numel(), ScalarType::Byte);
  Tensor edited_ops = empty(edited.numel(), ScalarType::Byte);

  const auto parallel = [](int64_t tasks, const auto& run) {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) run();
    });
  };
  const auto align = [&](auto token) {
    using Token = decltype(token);
    fgrl::align_batch(
        fgrl::Packed<Token>{original.const_data_ptr<Token>(), original_cu_seqlens.const_data_ptr<int64_t>()},
        fgrl::Packed<Token>{edited.const_data_ptr<Token>(), edited_cu_seqlens.const_data_ptr<int64_t>()}, batch,
        threads, static_cast<fgrl::Algorithm>(algorithm), distance.mutable_data_ptr<int64_t>(), original_ops.mutable_data_ptr<uint8_t>(),
        edited_ops.mutable_data_ptr<uint8_t>(), parallel);
  };
  if (original.scalar_type() == ScalarType::Int) {
    align(int32_t{});
  } else {
    STD_TORCH_CHECK(original.scalar_type() == ScalarType::Long, "original and edited must be int32 or int64");
    align(int64_t{});
  }
  return {distance, original_ops, edited_ops};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fgrl, CPU, library) { library.impl("align_edits", TORCH_BOX(&align_edits)); }
