// The losses that compute their own gradients, for every instruction set. Torch-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "losses/aggregate.h"
#include "losses/edit_preference_loss.h"
#include "losses/ppo_loss.h"
#include "losses/value_loss.h"
#include "simd/vector.h"

namespace fgrl {

#define FGRL_KERNEL_FILE "losses/losses.inc"
#include "simd/for_each_isa.inc"

}  // namespace fgrl
