// out = a b, or out += a b, for matrices of float or BFloat16 with any strides, summed in float. Torch-free.
//
// Of float for the processors on which MKL, PyTorch's product, reaches half of the peak: it chooses code by vendor. Of
// BFloat16 for those with AVX512_BF16, because PyTorch's product rounds what it returns to BFloat16. The
// method is the usual one (Goto and van de Geijn, ACM TOMS 34, 2008): blocks of a and b are copied into the order in
// which a kernel reads them, which keeps a tile of the result in registers. Nothing depends on the number of threads.
//
// vdpbf16ps adds the products of two pairs to a float, rounding to nearest, and takes subnormal numbers for 0.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "simd/half.h"
#include "simd/isa.h"
#include "simd/vector.h"

namespace fgrl {

template <typename T>
struct Matrix {
  T* data;
  int64_t rows, columns, row_stride, column_stride;

  Matrix part(int64_t row, int64_t column, int64_t row_count, int64_t column_count) const {
    return {data + row * row_stride + column * column_stride, std::min(row_count, rows - row),
            std::min(column_count, columns - column), row_stride, column_stride};
  }
};

// What a lane multiplies at a time: an element, or two of BFloat16 that are summed.
template <typename E>
using Word = std::conditional_t<std::is_same_v<E, BFloat16>, uint32_t, E>;

// How many are summed before the sum is added to the result: of float as few as make it as accurate as MKL's.
template <typename E>
constexpr int64_t DEPTH_WORDS = std::is_same_v<E, BFloat16> ? 288 : 192;

template <typename E>
struct MatmulScratch {
  std::vector<Word<E>> a, b;
  std::vector<float> sums;
};

// Blocks of the result, one a task.
struct MatmulBlocks {
  int64_t height = 512, width = 768;
  int64_t down = 0, across = 0;

  MatmulBlocks(int64_t rows, int64_t columns, int64_t threads) {
    if (rows == 0) return;
    for (;;) {
      down = (rows + height - 1) / height, across = (columns + width - 1) / width;
      if (threads == 1 || down * across >= 3 * threads) break;
      if (width > 192) {
        width /= 2;
      } else if (height > 32) {
        height /= 2;
      } else {
        break;
      }
    }
    // Of one size, whole tiles, so that threads end together.
    height = ((rows + down - 1) / down + 7) / 8 * 8;
    down = (rows + height - 1) / height;
  }
};

#define FGRL_KERNEL_FILE "linear/matmul.inc"
#define FGRL_KERNEL_BF16
#include "simd/for_each_isa.inc"

// Whether there is a product of BFloat16.
inline bool multiplies_bf16() { return isa() >= Isa::AVX512_BF16; }

// One block of `out`, whose columns lie next to each other.
inline void multiply_block(const Matrix<const float>& a, const Matrix<const float>& b, const Matrix<float>& out,
                           bool add, MatmulScratch<float>& scratch) {
  FGRL_DISPATCH(multiply_block, float)(a, b, out, add, scratch);
}

// Of BFloat16, where `multiplies_bf16()`; into float, or rounded to BFloat16 and then not added.
template <typename Out>
void multiply_block([[maybe_unused]] const Matrix<const BFloat16>& a, [[maybe_unused]] const Matrix<const BFloat16>& b,
                    [[maybe_unused]] const Matrix<Out>& out, [[maybe_unused]] bool add,
                    [[maybe_unused]] MatmulScratch<BFloat16>& scratch) {
#ifdef FGRL_X86
  if constexpr (std::is_same_v<Out, float>) {
    avx512_bf16::multiply_block<BFloat16>(a, b, out, add, scratch);
  } else {
    avx512_bf16::multiply_rounded<BFloat16>(a, b, out, scratch);
  }
#endif
}

}  // namespace fgrl
