// Runs one named piece of work of the C++ headers on fixed inputs, for an instruction counter: `driver NAME ISA`, where
// ISA is "baseline" or "avx2" (valgrind 3.19 knows no AVX-512). Only what `measured` calls is counted. Without
// arguments it prints the names.
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/align_edits.h"
#include "../../csrc/binary.h"
#include "../../csrc/gae.h"

using Work = std::function<void()>;

extern "C" void fgrl_measured(const Work& work) {
  work();
  asm volatile("" ::: "memory");  // no jump in place of the call
}

// Called through this, so that the compiler neither inlines nor clones it, and the counter finds it by its name.
static void (*volatile measured)(const Work&) = fgrl_measured;

namespace {

// Of the standard library only the generators, not the distributions, give the same numbers everywhere.
std::mt19937 generator(0);

std::vector<float> numbers(int64_t size) {
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) value = static_cast<float>(generator() >> 8) / (1 << 23) - 1.0f;
  return values;
}

// GAE over 64 sequences of 512 tokens, alone or with the reward shaping in front.
void advantages(bool shaped, bool holes) {
  constexpr int64_t COUNT = 64, LENGTH = 512, SIZE = COUNT * LENGTH;
  const std::vector<float> rewards = numbers(SIZE), values = numbers(SIZE), logprobs = numbers(SIZE), ref = numbers(SIZE);
  std::vector<uint8_t> mask(SIZE);
  for (uint8_t& valid : mask) valid = !holes || generator() % 4 != 0;
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

// Pairs of `length` tokens of which one in `every` is edited.
void align(int64_t count, int64_t length, uint32_t every, fgrl::Cpu cpu) {
  std::vector<int32_t> tokens[2];
  std::vector<int64_t> offsets[2] = {{0}, {0}};
  for (int64_t pair = 0; pair < count; ++pair) {
    for (int64_t i = 0; i < length; ++i) {
      const auto draw = [] { return static_cast<int32_t>(generator() % 49152); };
      const int32_t token = draw();
      tokens[0].push_back(token);
      const uint32_t kind = generator() % every == 0 ? generator() % 3 : 3;
      if (kind >= 2) tokens[1].push_back(token);
      if (kind == 1 || kind == 2) tokens[1].push_back(draw());
    }
    for (int side = 0; side < 2; ++side) offsets[side].push_back(static_cast<int64_t>(tokens[side].size()));
  }
  std::vector<int64_t> distance(static_cast<size_t>(count));
  std::vector<uint8_t> original(tokens[0].size()), edited(tokens[1].size());
  measured([&] {
    fgrl::align_batch<int32_t>({tokens[0].data(), offsets[0].data()}, {tokens[1].data(), offsets[1].data()}, count, 1,
                               {fgrl::Algorithm::AUTO, cpu}, distance.data(), original.data(), edited.data(),
                               [](int64_t, auto&& work) { work(); });
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
  const bool avx2 = argc == 3 && std::string(argv[2]) == "avx2";
  const fgrl::Cpu cpu = avx2 ? fgrl::Cpu::AVX2 : fgrl::Cpu::BASELINE;
  fgrl::isa_limit = avx2 ? fgrl::Isa::AVX2 : fgrl::Isa::BASELINE;
  const std::map<std::string, Work> works = {
      {"align_edits 8192 tokens, 1 %", [&] { align(2, 8192, 100, cpu); }},
      {"align_edits 2048 tokens, 30 %", [&] { align(4, 2048, 3, cpu); }},
      {"align_edits 64 tokens, 10 %", [&] { align(128, 64, 10, cpu); }},
      {"gae", [] { advantages(false, false); }},
      {"gae, holes", [] { advantages(false, true); }},
      {"token_advantages", [] { advantages(true, false); }},
      {"is_binary", binary},
  };
  if (argc != 3) {
    for (const auto& [name, work] : works) std::puts(name.c_str());
    return 0;
  }
  const auto work = works.find(argv[1]);
  if (work == works.end()) return std::fprintf(stderr, "unknown work %s\n", argv[1]), 1;
  work->second();
}
