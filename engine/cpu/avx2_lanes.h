// lanes.h in AVX2: 16 lanes are two vectors of 8. Included by avx2_*.cpp and avx_vnni_*.cpp alone.
//
// What these headers define has internal linkage, since two instruction sets compile them: were it not so, the linker would keep
// one copy of each function for both, and a CPU might meet the instructions of another.
#pragma once

#include <immintrin.h>

#include "lanes.h"

namespace puna {
namespace {

// All bits set in the first n of 8 lanes.
inline __m256i first_lanes(int64_t n) {
  const __m256i count = _mm256_set1_epi32(n > 8 ? 8 : n < 0 ? 0 : static_cast<int32_t>(n));
  return _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline __m256 exp_lanes(__m256 x) {
  // Of a NaN and a number these give their second operand; the sum at the end adds 0 to its bits.
  x = _mm256_max_ps(_mm256_set1_ps(EXP_LOW), _mm256_min_ps(_mm256_set1_ps(EXP_HIGH), x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(LOG2_E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_HIGH), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_LOW), r);
  __m256 p = _mm256_set1_ps(EXP_C[6]);
  for (int i = 5; i >= 0; --i) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C[i]));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}

// The sum of 16 lanes, folded 8, 4, 2, 1.
inline float fold_lanes(__m256 low, __m256 high) {
  const __m256 eight = _mm256_add_ps(low, high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace
}  // namespace puna
