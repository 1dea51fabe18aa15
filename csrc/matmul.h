// out = a b, or out += a b, for matrices with any strides. Torch-free.
//
// For the processors of which MKL, PyTorch's product, uses half of what they can do: it looks for its own maker's. The
// method is the usual one (Goto and van de Geijn, ACM TOMS 34, 2008): blocks of a and b are copied into the order in
// which a kernel reads them, which keeps a tile of the result in registers. Sums are in blocks of DEPTH products, which
// makes them as accurate as MKL's; nothing depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vector.h"

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

template <typename T>
struct MatmulScratch {
  std::vector<T> a, b;
};

// Blocks of the result, one a task.
struct MatmulBlocks {
  static constexpr int64_t DEPTH = 192;
  int64_t height = 256, width = 768;
  int64_t down, across;

  MatmulBlocks(int64_t rows, int64_t columns, int64_t threads) {
    for (;;) {
      down = (rows + height - 1) / height, across = (columns + width - 1) / width;
      if (threads == 1 || down * across >= 3 * threads) return;
      if (width > 192) {
        width /= 2;
      } else if (height > 32) {
        height /= 2;
      } else {
        return;
      }
    }
  }
};

#define FGRL_KERNEL_FILE "matmul.inc"
#include "for_each_isa.inc"

// One block of `out`, whose columns lie next to each other.
template <typename T>
void multiply_block(const Matrix<const T>& a, const Matrix<const T>& b, const Matrix<T>& out, bool add,
                    MatmulScratch<T>& scratch) {
  FGRL_DISPATCH(multiply_block, T)(a, b, out, add, scratch);
}

}  // namespace fgrl
