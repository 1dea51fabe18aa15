#include "align/align_edits.h"

#include "instructions.h"

namespace {

// Pairs of `length` tokens of which one in `every` is edited.
void align(int64_t count, int64_t length, uint32_t every) {
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
                               fgrl::Algorithm::AUTO, distance.data(), original.data(), edited.data(),
                               [](int64_t, auto&& work) { work(); });
  });
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, {{"align_edits 8192 tokens, 1 %", [] { align(2, 8192, 100); }},
              {"align_edits 2048 tokens, 30 %", [] { align(4, 2048, 3); }},
              {"align_edits 64 tokens, 10 %", [] { align(128, 64, 10); }}});
}
