#include "linear/kl_rows.h"

#include "instructions.h"

using namespace fgrl;

// Two rows of logits, the student's with a soft-cap: their divergence, and its gradient.
static void kl_row(Divergence divergence) {
  constexpr int64_t SIZE = 8192;
  const std::vector<float> logits = numbers(SIZE), bias = numbers(SIZE), teacher_logits = numbers(SIZE);
  std::vector<float> gradient(logits.size());
  const KlSide<float> student{logits.data(), bias.data(), {0.5f, 30.0f}, 1.0f, 8.5f};
  const KlSide<float> teacher{teacher_logits.data(), nullptr, {0.5f, 0.0f}, 0.5f, 8.8f};
  measured([&] {
    const auto found = kl_statistics<float>(student, teacher, SIZE, divergence, 0.5f);
    kl_gradient<float>(student, teacher, SIZE, divergence, 0.5f, {found.student, 0.1f}, gradient.data());
  });
}

int main(int argc, char** argv) {
  return run(argc, argv, {{"reverse KL of a row", [] { kl_row(Divergence::REVERSE); }},
                          {"Jensen-Shannon of a row", [] { kl_row(Divergence::JSD); }}});
}
