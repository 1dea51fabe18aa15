#include "linear/token_reward_head.h"

#include "instructions.h"

using namespace fgrl;

constexpr int64_t ROWS = 64, WIDTH = 576;

// 64 tokens of width 576, after a norm: rewards, and the gradients of hidden states and weights from ones.
static void head(bool is_backward) {
  const std::vector<float> hidden = numbers(ROWS * WIDTH), weight = numbers(WIDTH), norm = numbers(WIDTH);
  const float bias = 0;
  std::vector<float> rewards(ROWS), scores(ROWS), rstd(ROWS);
  const HeadWeights<float> weights(weight.data(), norm.data(), 1, WIDTH, column_order<float>());
  const HeadWeights<float, double> dot_weights(weight.data(), norm.data(), 1, WIDTH, column_order<float>());
  const HeadForward<float> forward{{hidden.data(), WIDTH}, dot_weights, &bias, 1e-6, rewards.data(), scores.data(), rstd.data()};
  if (!is_backward) return measured([&] { head_forward(forward, 0, ROWS); });
  head_forward(forward, 0, ROWS);
  const std::vector<float> ones(ROWS, 1.0f);
  std::vector<float> gradient(hidden.size()), moments(static_cast<size_t>(weights.pitch));
  double sum = 0;
  const HeadBackward<float> backward{{hidden.data(), WIDTH}, weights, ones.data(), scores.data(), rstd.data(), gradient.data()};
  measured([&] { head_backward(backward, 0, ROWS, {moments.data(), &sum}); });
}

int main(int argc, char** argv) {
  return run(argc, argv, {{"token_reward_head", [] { head(false); }}, {"token_reward_head, backward", [] { head(true); }}});
}
