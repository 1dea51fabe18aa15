#include "advantages/groups.h"

#include "instructions.h"

using namespace fgrl;

// Both passes over one sequence without a mask: centred token rewards as returns, and an outcome.
static void group_advantages() {
  const int64_t size = 4096;
  const float outcome = 0.5f;
  const std::vector<float> rewards = numbers(size);
  std::vector<float> advantages(rewards.size());
  GroupArguments<float> of{};
  of.rewards = &outcome, of.token_rewards = rewards.data(), of.gamma = 0.9, of.advantages = advantages.data();
  GroupScratch<float> scratch;
  measured([&] {
    Items outcomes, scores;
    sequence_items(of, 0, 0, size, outcomes, scores, scratch);
    const auto compared = compare({scores}, {{0}}, Baseline::MEAN, Scale::GROUP);
    write_advantages(of, 0, 0, size, Comparison{0, 0.5}, compared[0], scratch);
  });
}

int main(int argc, char** argv) { return run(argc, argv, {{"group_advantages", group_advantages}}); }
