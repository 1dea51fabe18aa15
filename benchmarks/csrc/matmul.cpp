#include "linear/matmul.h"

#include "instructions.h"

using namespace fgrl;

// One block of a product, with an edge on both sides.
static void matmul() {
  constexpr int64_t ROWS = 61, DEPTH = 576, COLUMNS = 190;
  const std::vector<float> a = numbers(ROWS * DEPTH), b = numbers(DEPTH * COLUMNS);
  std::vector<float> out(ROWS * COLUMNS);
  MatmulScratch<float> scratch;
  const Matrix<const float> left{a.data(), ROWS, DEPTH, DEPTH, 1}, right{b.data(), DEPTH, COLUMNS, 1, DEPTH};
  const Matrix<float> result{out.data(), ROWS, COLUMNS, COLUMNS, 1};
  measured([&] { multiply_block(left, right, result, false, scratch); });
}

int main(int argc, char** argv) {
  return run(argc, argv, {{"matmul", matmul}});
}
