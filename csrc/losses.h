// The losses that compute their own gradients, for every instruction set. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "aggregate.h"
#include "edit_preference_loss.h"
#include "ppo_loss.h"
#include "value_loss.h"
#include "vector.h"

namespace fgrl {

#define FGRL_KERNEL_FILE "losses.inc"
#include "for_each_isa.inc"

}  // namespace fgrl
