#include "linear/softmax_rows.h"

#include "instructions.h"

using namespace fgrl;

// A row of logits with a soft-cap: its statistics, and the gradient of its entropy and of its target's logp.
static void softmax_row() {
  constexpr int64_t SIZE = 8192, TARGET = 17;
  const std::vector<float> logits = numbers(SIZE), bias = numbers(SIZE);
  std::vector<float> gradient(logits.size());
  const LogitScale<float> scale{0.5f, 30.0f};
  measured([&] {
    const RowStatistics<float> found = row_statistics<float>(logits.data(), bias.data(), SIZE, TARGET, scale);
    const RowGrad<float> grad{found.max, -1 / found.sum, 0.1f / found.sum, 1.0f};
    row_gradient<float>(logits.data(), bias.data(), SIZE, TARGET, scale, grad, gradient.data());
  });
}

int main(int argc, char** argv) {
  return run(argc, argv, {{"softmax of a row", softmax_row}});
}
