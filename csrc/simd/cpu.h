// Instruction sets: which of them this CPU has, and how to compile for one whatever the compiler's own target is.
#pragma once

#if defined(__GNUC__)
#define FGRL_INLINE inline __attribute__((always_inline))
#else
#define FGRL_INLINE inline
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define FGRL_X86 1
#include <immintrin.h>
// FGRL_TARGET("avx2") ... FGRL_TARGET_END: the functions in between may use these instructions.
#define FGRL_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FGRL_TARGET(names) FGRL_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define FGRL_TARGET_END FGRL_PRAGMA(clang attribute pop)
#else  // GCC 12 warns of the undefined register in its own AVX-512 intrinsics
#define FGRL_TARGET(names)                                                                         \
  FGRL_PRAGMA(GCC diagnostic push) FGRL_PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized") \
  FGRL_PRAGMA(GCC push_options) FGRL_PRAGMA(GCC target(names))
#define FGRL_TARGET_END FGRL_PRAGMA(GCC pop_options) FGRL_PRAGMA(GCC diagnostic pop)
#endif
#define FGRL_AVX2 "avx2,lzcnt"
#define FGRL_AVX512 "avx512f,avx512dq,avx512bw,avx512cd,lzcnt"
#endif

namespace fgrl {

enum class Cpu { AUTO = 0, BASELINE = 1, AVX2 = 2, AVX512 = 3 };

// The best instruction set that this CPU has, at most `wanted` unless that is AUTO.
inline Cpu usable_cpu([[maybe_unused]] Cpu wanted) {
#ifdef FGRL_X86
  const bool any = wanted == Cpu::AUTO;
  if ((any || wanted == Cpu::AVX512) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd")) {
    return Cpu::AVX512;
  }
  if ((any || wanted >= Cpu::AVX2) && __builtin_cpu_supports("avx2")) return Cpu::AVX2;
#endif
  return Cpu::BASELINE;
}

}  // namespace fgrl
