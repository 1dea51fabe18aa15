#include "advantages/gae.h"

#include "tensors/binary.h"
#include "instructions.h"

namespace {

// GAE over 64 sequences of 512 tokens, alone or with the reward shaping in front. With holes, a quarter of the tokens are
// in some, of `hole` tokens or more.
void advantages(bool shaped, int64_t hole) {
  constexpr int64_t COUNT = 64, LENGTH = 512, SIZE = COUNT * LENGTH;
  const std::vector<float> rewards = numbers(SIZE), values = numbers(SIZE), logprobs = numbers(SIZE), ref = numbers(SIZE);
  std::vector<uint8_t> mask(SIZE);
  const int64_t step = std::max<int64_t>(hole, 1);
  for (int64_t i = 0; i < SIZE; i += step) std::fill_n(mask.begin() + i, step, hole == 0 || generator() % 4 != 0);
  std::vector<float> out[3];
  for (auto& tensor : out) tensor.resize(SIZE);
  std::vector<double> moments(3 * COUNT);
  fgrl::AdvantageArguments<float> of{};
  of.rewards = rewards.data(), of.values = values.data(), of.mask.data = mask.data();
  of.gamma = 0.99, of.lam = 0.95, of.shaped = shaped;
  of.advantages = out[0].data(), of.returns = out[1].data();
  if (shaped) {
    of.logprobs = logprobs.data(), of.ref_logprobs = ref.data();
    of.reward_scale = 1, of.reward_low = -0.5f, of.reward_high = 0.5f, of.kl_coef = 0.05f, of.kl_kind = 2;
    of.kl = out[2].data(), of.moments = moments.data();
  }
  fgrl::AdvantageScratch<float> scratch;
  measured([&] {
    for (int64_t i = 0; i < COUNT; ++i) fgrl::sequence_advantages(of, i, i * LENGTH, (i + 1) * LENGTH, scratch);
  });
}

void binary() {
  std::vector<float> flags = numbers(65536);
  for (float& flag : flags) flag = flag > 0;
  volatile bool result;
  measured([&] { result = fgrl::is_binary(flags.data(), static_cast<int64_t>(flags.size())); });
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, {{"gae", [] { advantages(false, 0); }},
              {"gae, holes", [] { advantages(false, 32); }},
              {"gae, holes of a token", [] { advantages(false, 1); }},
              {"token_advantages", [] { advantages(true, 0); }},
              {"is_binary", binary}});
}
