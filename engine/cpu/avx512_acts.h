// AVX-512: a row of activations becomes int8 blocks with scales and sums.
#pragma once

#include <immintrin.h>

#include "avx512_lanes.h"
#include "matmul.h"

namespace puna::avx512 {

// x[k .. k + 16), zero from `end` on.
inline __m512 load_to(const float *x, int64_t k, int64_t end) {
  const int64_t left = end - k;
  const __mmask16 mask = left >= 16 ? 0xFFFF : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
  return _mm512_maskz_loadu_ps(mask, x + k);
}

// The magnitude's bits as integers: they order like the floats, with infinity and then every NaN on top.
inline __m512i magnitude(__m512 x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)); }

template <int VECTORS>
struct Block {
  __m512 v[VECTORS];
  __m512i most = _mm512_setzero_si512();

  Block(const float *x, int64_t k, int64_t end) {
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) {
      v[i] = load_to(x, k + 16 * i, end);
      most = _mm512_max_epi32(most, magnitude(v[i]));
    }
  }
  int32_t amax_bits() const { return _mm512_reduce_max_epi32(most); }
  __m512i whole(int i, const Steps &steps) const {
    const __mmask16 sound = steps.inverse == 0 ? 0 : 0xFFFF;
    return _mm512_maskz_cvtps_epi32(sound, _mm512_mul_ps(v[i], _mm512_set1_ps(steps.inverse)));
  }
  float squared_error(const Steps &steps) const {
    __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) {
      const __m512 error = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(whole(i, steps)), _mm512_set1_ps(steps.scale), v[i]);
      sum = _mm512_fmadd_ps(error, error, sum);
    }
    return fold_lanes(sum);
  }
  // Writes q, and for each 16 their sum.
  void store(const Steps &steps, int8_t *q, int32_t sums[VECTORS]) const {
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) {
      const __m512i w = whole(i, steps);
      _mm_storeu_si128(reinterpret_cast<__m128i *>(q + 16 * i), _mm512_cvtepi32_epi8(w));
      sums[i] = _mm512_reduce_add_epi32(w);
    }
  }
};

inline void prepare128(const float *x, int64_t k, void *acts) {
  auto *block = static_cast<Acts128 *>(acts);
  const int64_t blocks = (k + SUPERBLOCK - 1) / SUPERBLOCK * 2;
  for (int64_t b = 0; b < blocks; ++b, ++block) {
    int32_t sums[8];
    const Block<8> values(x, 128 * b, k);
    const Steps steps = steps_of(values.amax_bits());
    values.store(steps, block->q, sums);
    block->scale = steps.scale;
    for (int i = 0; i < 8; ++i) block->negative_sums[i] = -sums[i];
    for (int i = 0; i < 4; ++i) block->negative_pairs[i] = static_cast<int16_t>(-(sums[2 * i] + sums[2 * i + 1]));
    block->unused = 0;
  }
}

// steps_of in 8 lanes.
struct EightSteps {
  alignas(32) float scales[GROUPS], inverses[GROUPS];

  EightSteps(__m256 amax, float levels) {
    const __m256 most = _mm256_set1_ps(std::numeric_limits<float>::max()), steps = _mm256_set1_ps(levels);
    const __m256 inverse = _mm256_div_ps(steps, amax);
    const __mmask8 sound = _mm256_cmp_ps_mask(amax, most, _CMP_LE_OQ);
    const __mmask8 usual = _mm256_mask_cmp_ps_mask(sound, inverse, most, _CMP_NGT_UQ);
    const __m256 scale = _mm256_maskz_div_ps(usual, amax, steps);
    _mm256_store_ps(inverses, _mm256_maskz_mov_ps(usual, inverse));
    _mm256_store_ps(scales, _mm256_mask_mov_ps(_mm256_set1_ps(std::numeric_limits<float>::quiet_NaN()), sound, scale));
  }
  Steps of(int64_t g) const { return {scales[g], inverses[g]}; }
};

// best_steps for the 8 groups of a superblock at once: which levels are best is as good as random, so that choosing by a
// branch for each group took most of the time.
inline void choose_steps(const Block<2> groups[GROUPS], float scales[GROUPS], float inverses[GROUPS]) {
  alignas(32) int32_t amax_bits[GROUPS];
  for (int64_t g = 0; g < GROUPS; ++g) amax_bits[g] = groups[g].amax_bits();
  const __m256 amax = _mm256_castsi256_ps(_mm256_load_si256(reinterpret_cast<const __m256i *>(amax_bits)));
  __m256 least, scale, inverse;
  for (size_t i = 0; i < std::size(LEVELS); ++i) {
    const EightSteps tried(amax, LEVELS[i]);
    alignas(32) float errors[GROUPS];
    for (int64_t g = 0; g < GROUPS; ++g) errors[g] = groups[g].squared_error(tried.of(g));
    const __m256 found = _mm256_load_ps(errors);
    const __mmask8 better = i == 0 ? 0xFF : _mm256_cmp_ps_mask(found, least, _CMP_LT_OQ);
    least = i == 0 ? found : _mm256_mask_mov_ps(least, better, found);
    scale = i == 0 ? _mm256_load_ps(tried.scales) : _mm256_mask_mov_ps(scale, better, _mm256_load_ps(tried.scales));
    inverse = i == 0 ? _mm256_load_ps(tried.inverses) : _mm256_mask_mov_ps(inverse, better, _mm256_load_ps(tried.inverses));
  }
  _mm256_storeu_ps(scales, scale);
  _mm256_storeu_ps(inverses, inverse);
}

inline void prepare32(const float *x, int64_t k, void *acts) {
  auto *block = static_cast<Acts32 *>(acts);
  const int64_t blocks = (k + SUPERBLOCK - 1) / SUPERBLOCK;
  for (int64_t b = 0; b < blocks; ++b, ++block) {
    const auto group = [&](int64_t g) { return Block<2>(x, SUPERBLOCK * b + GROUP * g, k); };
    const Block<2> groups[GROUPS] = {group(0), group(1), group(2), group(3), group(4), group(5), group(6), group(7)};
    float inverses[GROUPS];
    choose_steps(groups, block->scales, inverses);
    for (int64_t g = 0; g < GROUPS; ++g) {
      int32_t sums[2];
      groups[g].store({block->scales[g], inverses[g]}, block->q + GROUP * g, sums);
      block->negative_sums[g] = -(sums[0] + sums[1]);
      block->sums[g] = block->scales[g] * static_cast<float>(sums[0] + sums[1]);
    }
  }
}

}  // namespace puna::avx512
