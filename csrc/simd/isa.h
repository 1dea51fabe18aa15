// Instruction sets: their names, which of them this processor has, which one code runs on, and how to compile for one
// whatever the compiler's own target is. `for_each_isa.inc` compiles a file for each of them.
#pragma once

#include <algorithm>
#include <atomic>

#if defined(__GNUC__)
#define FGRL_VECTORS 1
#define FGRL_INLINE inline __attribute__((always_inline))
#else
#define FGRL_INLINE inline
#endif
#define FGRL_KERNEL static FGRL_INLINE

#if defined(__GNUC__) && defined(__x86_64__)
#define FGRL_X86 1
#include <immintrin.h>
// FGRL_TARGET(FGRL_AVX2) ... FGRL_TARGET_END: the functions in between may use these instructions.
#define FGRL_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FGRL_TARGET(names) FGRL_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define FGRL_TARGET_END FGRL_PRAGMA(clang attribute pop)
#define FGRL_WIDE
#else  // GCC 12 warns of the undefined register in its own AVX-512 intrinsics
#define FGRL_TARGET(names)                                                                         \
  FGRL_PRAGMA(GCC diagnostic push) FGRL_PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized") \
  FGRL_PRAGMA(GCC push_options) FGRL_PRAGMA(GCC target(names))
#define FGRL_TARGET_END FGRL_PRAGMA(GCC pop_options) FGRL_PRAGMA(GCC diagnostic pop)
#define FGRL_WIDE ",prefer-vector-width=512"
#endif
#define FGRL_AVX2 "avx2,fma,lzcnt"
#define FGRL_AVX512 "avx512f,avx512dq,avx512bw,avx512cd,avx512vl,fma,lzcnt" FGRL_WIDE
#define FGRL_AVX512_BF16 "avx512bf16," FGRL_AVX512
#endif

namespace fgrl {

// Each has all that the one before it has. BASELINE is the compiler's own target: SSE2, NEON, or no vectors at all.
enum class Isa { BASELINE, AVX2, AVX512, AVX512_BF16 };

// PyTorch's names, as in ATEN_CPU_CAPABILITY, where it has one.
constexpr const char* ISA_NAMES[] = {"default", "avx2", "avx512", "avx512_bf16"};

// The best instruction set of this processor.
inline Isa detected_isa() {
#ifdef FGRL_X86
  static const Isa detected = [] {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::BASELINE;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                        __builtin_cpu_supports("avx512vl");
    if (!avx512) return Isa::AVX2;
    return __builtin_cpu_supports("avx512bf16") ? Isa::AVX512_BF16 : Isa::AVX512;
  }();
  return detected;
#else
  return Isa::BASELINE;
#endif
}

// What code may use at most.
inline std::atomic<Isa> isa_limit{Isa::AVX512_BF16};

// The instruction set to run on.
inline Isa isa() { return std::min<Isa>(isa_limit.load(std::memory_order_relaxed), detected_isa()); }

// The function that `for_each_isa.inc` compiled for `isa`, a template argument list included.
#ifdef FGRL_X86
#define FGRL_FOR_ISA(isa, ...)                                     \
  ((isa) >= ::fgrl::Isa::AVX512 ? avx512::__VA_ARGS__              \
   : (isa) == ::fgrl::Isa::AVX2 ? avx2::__VA_ARGS__ : baseline::__VA_ARGS__)
#else
#define FGRL_FOR_ISA(isa, ...) (static_cast<void>(isa), baseline::__VA_ARGS__)
#endif

// `function<T>` for the instruction set to run on.
#define FGRL_DISPATCH(function, ...) FGRL_FOR_ISA(::fgrl::isa(), function<__VA_ARGS__>)

}  // namespace fgrl
