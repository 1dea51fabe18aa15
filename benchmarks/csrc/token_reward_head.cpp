#include "../../csrc/token_reward_head.h"

#include "instructions.h"

using namespace fgrl;

// 64 tokens of width 576, after a norm.
static void forward() {
  constexpr int64_t ROWS = 64, WIDTH = 576;
  const std::vector<float> hidden = numbers(ROWS * WIDTH), weight = numbers(WIDTH), norm = numbers(WIDTH);
  const float bias = 0;
  std::vector<float> rewards(ROWS), scores(ROWS), rstd(ROWS);
  const HeadWeights<float> weights(weight.data(), norm.data(), 1, WIDTH, column_order<float>());
  const HeadForward<float> of{{hidden.data(), WIDTH}, weights, &bias, 1e-6, rewards.data(), scores.data(), rstd.data()};
  measured([&] { head_forward(of, 0, ROWS); });
}

int main(int argc, char** argv) {
  return run(argc, argv, [](bool is_avx2) { isa_limit = is_avx2 ? Isa::AVX2 : Isa::BASELINE; }, {{"token_reward_head", forward}});
}
