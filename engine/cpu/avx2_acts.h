// AVX2: a row of activations becomes int8 blocks with scales and sums.
#pragma once

#include <immintrin.h>

#include "avx2_lanes.h"
#include "matmul.h"

namespace puna {
namespace {

// x[k .. k + 8), zero from `end` on.
inline __m256 load_to(const float *x, int64_t k, int64_t end) {
  if (end - k >= 8) return _mm256_loadu_ps(x + k);
  return end > k ? _mm256_maskload_ps(x + k, first_lanes(end - k)) : _mm256_setzero_ps();
}

inline int32_t sum_of(__m256i v) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}

inline int32_t most_of(__m256i v) {
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}

// The whole numbers of 16 values, which are two vectors.
struct Sixteen {
  __m256i low, high;
};

template <int COUNT>
struct Block {
  static constexpr int VECTORS = COUNT / 8;
  __m256 v[VECTORS];
  __m256i most = _mm256_setzero_si256();  // bits of magnitudes: they order like the floats, with infinity and then NaN on top

  Block(const float *x, int64_t k, int64_t end) {
    const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
#pragma GCC unroll 16
    for (int i = 0; i < VECTORS; ++i) {
      v[i] = load_to(x, k + 8 * i, end);
      most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    }
  }
  __m256i whole(int i, const Steps &steps) const {
    const __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(steps.inverse)));
    return _mm256_and_si256(rounded, _mm256_set1_epi32(steps.inverse == 0 ? 0 : -1));
  }
  Sixteen sixteen(int i, const Steps &steps) const { return {whole(2 * i, steps), whole(2 * i + 1, steps)}; }
  float squared_error(const Steps &steps) const {
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
#pragma GCC unroll 16
    for (int i = 0; i < VECTORS; ++i) {
      const __m256 error = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(whole(i, steps)), _mm256_set1_ps(steps.scale), v[i]);
      sums[i % 2] = _mm256_fmadd_ps(error, error, sums[i % 2]);
    }
    return fold_lanes(sums[0], sums[1]);
  }
};

// Quantises COUNT values: gives the scale, writes q, and for each 16 the sum of q.
template <int COUNT>
inline float quantise(const float *x, int64_t k, int64_t end, int8_t *q, int32_t sums[COUNT / 16]) {
  const Block<COUNT> block(x, k, end);
  const int32_t amax_bits = most_of(block.most);
  Steps steps = steps_of(amax_bits);
  if constexpr (COUNT == GROUP) {
    steps = best_steps(amax_bits, [&](const Steps &tried) { return block.squared_error(tried); });
  }
#pragma GCC unroll 8
  for (int i = 0; i < COUNT / 16; ++i) {
    const auto [low, high] = block.sixteen(i, steps);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(q + 16 * i), bytes);
    sums[i] = sum_of(_mm256_add_epi32(low, high));
  }
  return steps.scale;
}

inline void prepare128(const float *x, int64_t k, void *acts) {
  auto *block = static_cast<Acts128 *>(acts);
  const int64_t blocks = (k + SUPERBLOCK - 1) / SUPERBLOCK * 2;
  for (int64_t b = 0; b < blocks; ++b, ++block) {
    int32_t sums[8];
    block->scale = quantise<128>(x, 128 * b, k, block->q, sums);
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
      block->scales[g] = quantise<GROUP>(x, SUPERBLOCK * b + GROUP * g, k, block->q + GROUP * g, sums);
      block->negative_sums[g] = -(sums[0] + sums[1]);
      block->sums[g] = block->scales[g] * static_cast<float>(sums[0] + sums[1]);
    }
  }
}

}  // namespace
}  // namespace puna
