// `run_strip` for AVX-512 and AVX2, compiled whatever the compiler's own target is, and the choice between them.
#pragma once

#include "simd/cpu.h"
#include "align/strip.h"

#ifdef FGRL_X86

namespace fgrl {

FGRL_TARGET(FGRL_AVX512)
namespace avx512 {
constexpr int COUNT = 8;
typedef uint64_t V __attribute__((vector_size(64)));
static FGRL_INLINE V load(const uint64_t* p) { return (V)_mm512_loadu_si512(p); }
static FGRL_INLINE void store(uint64_t* p, V v) { _mm512_storeu_si512(p, (__m512i)v); }
static FGRL_INLINE V lane_numbers() { return V{0, 1, 2, 3, 4, 5, 6, 7}; }
static FGRL_INLINE V lanes_between(int64_t low, int64_t high) {  // low < lane <= high
  const __m512i lane = (__m512i)lane_numbers();
  const __mmask8 mask = _mm512_cmpgt_epi64_mask(lane, _mm512_set1_epi64(low)) &
                        _mm512_cmple_epi64_mask(lane, _mm512_set1_epi64(high));
  return (V)_mm512_movm_epi64(mask);
}
static FGRL_INLINE V shift_in(V v, uint64_t first) {
  return (V)_mm512_alignr_epi64((__m512i)v, _mm512_set1_epi64(static_cast<int64_t>(first)), 7);
}
// Delays lane l by l steps: odd lanes by one, then those with bit 1 by two, then those with bit 2 by four.
static FGRL_INLINE V skew(V now, V (&past)[7]) {
  const V one = (V)_mm512_mask_blend_epi64(0xaa, (__m512i)now, (__m512i)past[0]);
  past[0] = now;
  const V two = (V)_mm512_mask_blend_epi64(0xcc, (__m512i)one, (__m512i)past[2]);
  past[2] = past[1], past[1] = one;
  const V four = (V)_mm512_mask_blend_epi64(0xf0, (__m512i)two, (__m512i)past[6]);
  past[6] = past[5], past[5] = past[4], past[4] = past[3], past[3] = two;
  return four;
}
static FGRL_INLINE uint64_t last_top_bit(V v) {   // in the top bit
  return static_cast<uint64_t>(_mm512_movepi64_mask((__m512i)v) >> 7) << 63;
}
#include "align/strip_loop.inc"
}  // namespace avx512
FGRL_TARGET_END
FGRL_TARGET(FGRL_AVX2)
namespace avx2 {
constexpr int COUNT = 4;
typedef uint64_t V __attribute__((vector_size(32)));
static FGRL_INLINE V load(const uint64_t* p) { return (V)_mm256_loadu_si256((const __m256i*)p); }
static FGRL_INLINE void store(uint64_t* p, V v) { _mm256_storeu_si256((__m256i*)p, (__m256i)v); }
static FGRL_INLINE V lane_numbers() { return V{0, 1, 2, 3}; }
static FGRL_INLINE V lanes_between(int64_t low, int64_t high) {  // low < lane <= high
  const __m256i lane = (__m256i)lane_numbers();
  return (V)_mm256_andnot_si256(_mm256_cmpgt_epi64(lane, _mm256_set1_epi64x(high)),
                                _mm256_cmpgt_epi64(lane, _mm256_set1_epi64x(low)));
}
static FGRL_INLINE V shift_in(V v, uint64_t first) {
  return (V)_mm256_blend_epi32(_mm256_permute4x64_epi64((__m256i)v, 0x90),
                               _mm256_set1_epi64x(static_cast<int64_t>(first)), 0x03);
}
static FGRL_INLINE V skew(V now, V (&past)[7]) {
  const V one = (V)_mm256_blend_epi32((__m256i)now, (__m256i)past[0], 0xcc);
  past[0] = now;
  const V two = (V)_mm256_blend_epi32((__m256i)one, (__m256i)past[2], 0xf0);
  past[2] = past[1], past[1] = one;
  return two;
}
static FGRL_INLINE uint64_t last_top_bit(V v) {   // in the top bit
  return static_cast<uint64_t>(_mm256_movemask_pd((__m256d)v) >> 3) << 63;
}
#include "align/strip_loop.inc"
}  // namespace avx2
FGRL_TARGET_END

}  // namespace fgrl
#endif

namespace fgrl {

// How to run a strip on one instruction set.
struct StripRunner {
  RunStrip run;
  WalkBack walk;
  int lanes;
  int skew;
};

inline StripRunner strip_runner(Cpu cpu, int64_t rows) {
  WalkBack walk = walk_baseline;
#ifdef FGRL_X86
  if (cpu == Cpu::AVX2) walk = avx2::walk;
  if (cpu == Cpu::AVX512) walk = avx512::walk;
#else
  (void)cpu;
#endif
  // Two words do not fill the lanes of a vector; they run faster one after the other.
  if (rows <= 64) return {run_strip_baseline<1>, walk, 1, 0};
  if (rows <= 128) return {run_strip_baseline<2>, walk, 2, 0};
#ifdef FGRL_X86
  if (cpu == Cpu::AVX512) return {avx512::run_strip, walk, avx512::COUNT, 1};
  if (cpu == Cpu::AVX2) return {avx2::run_strip, walk, avx2::COUNT, 1};
#endif
  return {run_strip_baseline<4>, walk, 4, 0};
}

}  // namespace fgrl
