#include "advantages/whiten.h"

#include "instructions.h"

static void whiten() {
  const std::vector<float> advantages = numbers(fgrl::WHITEN_BLOCK);
  std::vector<float> out(advantages.size());
  measured([&] {
    double moments[3];
    fgrl::block_moments(advantages.data(), {}, 0, fgrl::WHITEN_BLOCK, moments);
    fgrl::block_whiten(advantages.data(), {}, 0, fgrl::WHITEN_BLOCK, fgrl::Whitening(moments), out.data());
  });
}

int main(int argc, char** argv) {
  return run(argc, argv, {{"whiten", whiten}});
}
