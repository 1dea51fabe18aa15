#include "losses/losses.h"

#include "instructions.h"

using namespace fgrl;

// Loss, statistics and gradient of one block, with the KL term.
static void ppo_loss() {
  const int64_t size = TOKENS_A_BLOCK;
  const std::vector<float> logprobs = numbers(size), old = numbers(size), advantages = numbers(size), ref = numbers(size);
  std::vector<float> gradient(logprobs.size());
  PPOArguments<float> of{};
  of.logprobs = logprobs.data(), of.old_logprobs = old.data(), of.advantages = advantages.data();
  of.ref_logprobs = ref.data(), of.ratio_low = 0.8f, of.ratio_high = 1.2f, of.dual_clip = 3, of.kl_coef = 0.1f;
  of.kl_kind = 2, of.logprobs_grad = gradient.data();
  const Weighting<float> weighting{};
  volatile double loss;
  measured([&] { loss = FGRL_DISPATCH(ppo_block, float)(of, weighting, 0, size, nullptr).values[0]; });
}

// Both passes over four sequences, with importance weights of sequences.
static void sequence_loss(PolicyLoss loss) {
  const int64_t offsets[] = {0, 1000, 1500, 3000, TOKENS_A_BLOCK};
  const int64_t size = TOKENS_A_BLOCK;
  const std::vector<float> logprobs = numbers(size), old = numbers(size), advantages = numbers(size);
  const std::vector<float> rollout = numbers(size);
  std::vector<float> gradient(logprobs.size());
  PPOArguments<float> of{};
  of.logprobs = logprobs.data(), of.old_logprobs = old.data(), of.advantages = advantages.data();
  of.rollout_logprobs = rollout.data(), of.importance_level = ImportanceLevel::GEOMETRIC, of.importance_cap = 2;
  of.policy_loss = loss, of.ratio_low = loss == PolicyLoss::GMPO ? -0.2f : 0.8f;
  of.ratio_high = loss == PolicyLoss::GMPO ? 0.2f : 1.2f, of.dual_clip = 3, of.logprobs_grad = gradient.data();
  const Weighting<float> weighting{};
  volatile double total;
  measured([&] {
    total = FGRL_DISPATCH(ppo_sequences, float)(of, weighting, {4, 0, offsets, true}, 0, 4, nullptr).values[0];
  });
}

static void value_loss() {
  const int64_t size = TOKENS_A_BLOCK;
  const std::vector<float> values = numbers(size), old = numbers(size), returns = numbers(size);
  std::vector<float> gradient(values.size());
  ValueArguments<float> of{};
  of.values = values.data(), of.old_values = old.data(), of.returns = returns.data();
  of.clip = 0.2f, of.values_grad = gradient.data();
  const Weighting<float> weighting{};
  volatile double loss;
  measured([&] { loss = FGRL_DISPATCH(value_block, float)(of, weighting, 0, size, nullptr).values[0]; });
}

// Both passes over one row, a third of whose tokens are edited.
static void edit_preference_loss() {
  const int64_t size = TOKENS_A_BLOCK;
  const std::vector<float> rewards = numbers(size);
  std::vector<uint8_t> edits(rewards.size());
  for (uint8_t& flag : edits) flag = generator() % 3 == 0;
  std::vector<float> gradient(rewards.size());
  const EditSide<float> side{rewards.data(), {edits.data(), 1, false}, {}, size, gradient.data()};
  EditFlags flags;
  volatile double score;
  measured([&] {
    flags.read(side, 0);
    score = FGRL_DISPATCH(edit_sums, float)(side.rewards, flags, size).score;
    FGRL_DISPATCH(edit_gradient, float)(side.rewards, flags, size, 0.5f, 0.25f, side.rewards_grad);
  });
}

int main(int argc, char** argv) {
  return run(argc, argv, {{"ppo_loss", ppo_loss},
                          {"ppo_loss, gspo", [] { sequence_loss(PolicyLoss::GSPO); }},
                          {"ppo_loss, gmpo", [] { sequence_loss(PolicyLoss::GMPO); }},
                          {"value_loss", value_loss},
                          {"edit_preference_loss", edit_preference_loss}});
}
