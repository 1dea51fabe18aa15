// From tensors to the pointers that the torch-free headers take.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "tensors/rows.h"

namespace fgrl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What an op computes in and returns: fp64 when any of the tensors is fp64, else fp32.
template <typename... Tensors>
ScalarType compute_dtype(const Tensors&... tensors) {
  const auto is_double = [](const OptionalTensor& t) { return t && t->scalar_type() == ScalarType::Double; };
  return (is_double(OptionalTensor(tensors)) || ...) ? ScalarType::Double : ScalarType::Float;
}

// Calls `run` with a zero of the type of the computation.
template <typename Run>
void with_type(ScalarType dtype, const Run& run) {
  if (dtype == ScalarType::Double) {
    run(double{});
  } else {
    run(float{});
  }
}

// Owns the copies of inputs of another dtype or layout. The usual ones, contiguous and of the dtype of the computation,
// are read where they are.
class Inputs {
 public:
  explicit Inputs(ScalarType dtype) : dtype_(dtype) {}

  template <typename T>
  const T* read(const OptionalTensor& tensor, int64_t size) {
    if (!tensor) return nullptr;
    return static_cast<const T*>(contiguous(*tensor, dtype_, size).const_data_ptr());
  }

  TokenMask mask(const OptionalTensor& mask, int64_t size) {
    if (!mask) return {};
    const ScalarType dtype = mask->scalar_type();
    const bool floating = dtype == ScalarType::Half || dtype == ScalarType::BFloat16 || dtype == ScalarType::Float ||
                          dtype == ScalarType::Double;
    const Tensor& usable = contiguous(*mask, dtype, size);
    return {usable.const_data_ptr(), static_cast<int>(usable.element_size()), floating};
  }

  // The rows of `like [B, T]`, or what cu_seqlens says of `like [N]`. Its values were checked by the public op.
  Sequences sequences(const Tensor& like, const OptionalTensor& cu_seqlens) {
    if (!cu_seqlens) return like.dim() == 2 ? Sequences{like.size(0), like.size(1)} : Sequences{1, like.numel()};
    const ScalarType dtype = cu_seqlens->scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Int || dtype == ScalarType::Long, "cu_seqlens must be int32 or int64");
    STD_TORCH_CHECK(cu_seqlens->numel() > 0, "cu_seqlens must have an entry");
    const Tensor& usable = contiguous(*cu_seqlens, dtype, cu_seqlens->numel());
    const Sequences result{usable.numel() - 1, 0, usable.const_data_ptr(), dtype == ScalarType::Long};
    STD_TORCH_CHECK(result.begin(0) == 0 && result.begin(result.count) == like.numel(),
                    "cu_seqlens must start at 0 and end at the number of tokens");
    for (int64_t i = 0; i < result.count; ++i) {
      STD_TORCH_CHECK(result.begin(i) <= result.end(i), "cu_seqlens must not decrease");
    }
    return result;
  }

 private:
  const Tensor& contiguous(const Tensor& tensor, ScalarType dtype, int64_t size) {
    STD_TORCH_CHECK(tensor.is_cpu() && tensor.numel() == size, "tensors must be on the CPU and of fitting shapes");
    Tensor usable = tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
    copies_.push_back(usable.is_contiguous() ? usable : torch::stable::contiguous(usable));
    return copies_.back();
  }

  ScalarType dtype_;
  std::vector<Tensor> copies_;
};

// Fresh memory is mapped page by page as it is written, which for a large output takes longer than writing it: pages of
// 2 MB are asked for, where the system leaves that to programs.
inline void prefer_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t HUGE_PAGE = 1 << 21;
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (address + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  const uintptr_t last = (address + bytes) / HUGE_PAGE * HUGE_PAGE;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

inline Tensor empty_like(const Tensor& like, ScalarType dtype) {
  Tensor result = torch::stable::empty(like.sizes(), dtype);
  prefer_huge_pages(result.mutable_data_ptr(), static_cast<size_t>(result.numel()) * result.element_size());
  return result;
}

template <typename T>
T* data(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls `run(state, task)` for every task in [0, count), with a state a thread, on as many threads as `tokens` are worth.
// Who runs which is not determined, so a task may depend on nothing but its number.
template <typename State, typename Run>
void for_each_task(int64_t count, int64_t tokens, const Run& run) {
  constexpr int64_t TOKENS_WORTH_A_THREAD = 16384;
  const int64_t worth = std::max<int64_t>(1, tokens / TOKENS_WORTH_A_THREAD);
  const int64_t threads = std::min<int64_t>({count, worth, torch::stable::get_num_threads()});
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    State state;
    for (int64_t task = next++; task < count; task = next++) run(state, task);
  };
  if (threads <= 1) return work(0, 1);
  torch::stable::parallel_for(0, threads, 1, work);
}

}  // namespace fgrl
