// Vector code for several instruction sets in one binary, chosen at run time. `for_each_isa.inc` compiles a kernel file
// once for each of them; `vector.inc` gives it the vectors.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__GNUC__)
#define FGRL_VECTORS 1
#if defined(__x86_64__)
#define FGRL_VECTORS_X86 1
#include <immintrin.h>
#endif
#define FGRL_MEMBER inline __attribute__((always_inline))
#else
#define FGRL_MEMBER inline
#endif
#define FGRL_KERNEL static FGRL_MEMBER

namespace fgrl {

enum class Isa { BEST = 0, BASELINE = 1, AVX2 = 2, AVX512 = 3 };

// What the kernels may use at most. Tests set it to see every one of them.
inline std::atomic<Isa> isa_limit{Isa::BEST};

// The best instruction set of this processor within the limit.
inline Isa isa() {
#ifdef FGRL_VECTORS_X86
  static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const Isa limit = isa_limit;
  if (avx512 && (limit == Isa::BEST || limit == Isa::AVX512)) return Isa::AVX512;
  if (avx2 && limit != Isa::BASELINE) return Isa::AVX2;
#endif
  return Isa::BASELINE;
}

// `function<T>` of the namespace of the best instruction set.
#ifdef FGRL_VECTORS_X86
#define FGRL_DISPATCH(function, T)                                                     \
  (::fgrl::isa() == ::fgrl::Isa::AVX512 ? avx512::function<T>                          \
   : ::fgrl::isa() == ::fgrl::Isa::AVX2 ? avx2::function<T> : baseline::function<T>)
#else
#define FGRL_DISPATCH(function, T) (baseline::function<T>)
#endif

template <typename T>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  using Int = int32_t;
  using Uint = uint32_t;
  static constexpr int MANTISSA = 23, BIAS = 127, EXP_TERMS = 7;
  static constexpr float ROUNDER = 12582912.0f;                               // 1.5 * 2^23
  static constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;  // n * LN2_HIGH is exact
  static constexpr float EXP_LIMIT = 88.7228317f, EXP_FLOOR = -86.0f;
};

template <>
struct FloatFormat<double> {
  using Int = int64_t;
  using Uint = uint64_t;
  static constexpr int MANTISSA = 52, BIAS = 1023, EXP_TERMS = 13;
  static constexpr double ROUNDER = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double LN2_HIGH = 6.93147180369123816490e-01, LN2_LOW = 1.90821492927058770002e-10;
  static constexpr double EXP_LIMIT = 709.78271289338397, EXP_FLOOR = -707.0;
};

}  // namespace fgrl
