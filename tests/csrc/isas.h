// The instruction sets that this machine can run.
#pragma once

#include <vector>

#include "simd/isa.h"

inline std::vector<fgrl::Isa> present_isas() {
  std::vector<fgrl::Isa> present;
  for (int i = 0; i <= static_cast<int>(fgrl::detected_isa()); ++i) present.push_back(static_cast<fgrl::Isa>(i));
  return present;
}
