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
};

// Quantises VECTORS x 16 values: gives the scale, writes q, and for each 16 the sum of q.
template <int VECTORS>
inline float quantise(const float *x, int64_t k, int64_t end, int8_t *q, int32_t sums[VECTORS]) {
  const Block<VECTORS> block(x, k, end);
  const int32_t amax_bits = block.amax_bits();
  Steps steps = steps_of(amax_bits);
  if constexpr (16 * VECTORS == GROUP) {
    steps = best_steps(amax_bits, [&](const Steps &tried) { return block.squared_error(tried); });
  }
#pragma GCC unroll 8
  for (int i = 0; i < VECTORS; ++i) {
    const __m512i whole = block.whole(i, steps);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(q + 16 * i), _mm512_cvtepi32_epi8(whole));
    sums[i] = _mm512_reduce_add_epi32(whole);
  }
  return steps.scale;
}

inline void prepare128(const float *x, int64_t k, void *acts) {
  auto *block = static_cast<Acts128 *>(acts);
  const int64_t blocks = (k + SUPERBLOCK - 1) / SUPERBLOCK * 2;
  for (int64_t b = 0; b < blocks; ++b, ++block) {
    int32_t sums[8];
    block->scale = quantise<8>(x, 128 * b, k, block->q, sums);
    for (int i = 0; i < 8; ++i) block->negative_sums[i] = -sums[i];
    for (int i = 0; i < 4; ++i) block->negative_pairs[i] = static_cast<int16_t>(-(sums[2 * i] + sums[2 * i + 1]));
    block->unused = 0;
  }
}

inline void prepare32(const float *x, int64_t k, void *acts) {
  auto *block = static_cast<Acts32 *>(acts);
  const int64_t blocks = (k + SUPERBLOCK - 1) / SUPERBLOCK;
  for (int64_t b = 0; b < blocks; ++b, ++block) {
    for (int64_t g = 0; g < GROUPS; ++g) {
      int32_t sums[2];
      block->scales[g] = quantise<2>(x, SUPERBLOCK * b + GROUP * g, k, block->q + GROUP * g, sums);
      block->negative_sums[g] = -(sums[0] + sums[1]);
      block->sums[g] = block->scales[g] * static_cast<float>(sums[0] + sums[1]);
    }
  }
}

}  // namespace puna::avx512
