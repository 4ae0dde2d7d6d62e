// Quantised pages in AVX2: a page's codes are brought to int16 (keys) or float32 (values) once for the tile.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "kv_codes.h"

namespace puna::avx2_codes {

static inline __m128i load16(const void *page, int64_t at) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i *>(static_cast<const uint8_t *>(page) + at));
}

// What sixteen indices of q4 stand for: those in the low halves of bytes, or in the high halves.
static inline __m128i decode_low(__m128i pairs) {
  return _mm_shuffle_epi8(load16(CODEBOOK, 0), _mm_and_si128(pairs, _mm_set1_epi8(0xf)));
}
static inline __m128i decode_high(__m128i pairs) { return decode_low(_mm_srli_epi16(pairs, 4)); }

static inline __m256 load_scales(const void *page, int64_t codes, int64_t group, int64_t token) {
  const __m128i half = load16(page, codes + (group * PAGE + token) * 2);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// Keys of a page as (Dh / 4, PAGE, 4).
static inline void widen_keys(const void *page, KV format, int64_t head_dim, int16_t *to) {
  const auto put = [&](int64_t i, __m256i codes) { _mm256_store_si256(reinterpret_cast<__m256i *>(to + i), codes); };
  const int64_t bytes = key_codes(format, head_dim);
  for (int64_t i = 0; i < bytes; i += 16) {
    const __m128i x = load16(page, i);
    if (format == KV::q8) {
      put(i, _mm256_sub_epi16(_mm256_cvtepu8_epi16(x), _mm256_set1_epi16(128)));
    } else {
      const int64_t at = i / (4 * PAGE) * (8 * PAGE) + i % (4 * PAGE);
      put(at, _mm256_cvtepi8_epi16(decode_low(x)));
      put(at + 4 * PAGE, _mm256_cvtepi8_epi16(decode_high(x)));
    }
  }
}

// Values of a page as (PAGE, whole groups (q4) or vectors (q8) of columns).
static inline void widen_values(const void *page, KV format, int64_t head_dim, float *to) {
  const auto put = [&](int64_t i, __m128i codes) {
    _mm256_store_ps(to + i, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
    _mm256_store_ps(to + i + 8, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8))));
  };
  const int64_t bytes = value_codes(format, head_dim);
  for (int64_t i = 0; i < bytes; i += 16) {
    const __m128i x = load16(page, i);
    if (format == KV::q8) put(i, x);
    else put(2 * i, decode_low(x)), put(2 * i + 16, decode_high(x));
  }
}

// Scores of 16 tokens from `token` on for Q queries, by the codes that widen_keys gives and the scales of the page.
template <int Q>
void score_codes(const QueryCodes &queries, int64_t head_dim, const int16_t *codes, const void *page, KV format, int64_t token,
                 float *scores) {
  __m256 running[Q][2];
#pragma GCC unroll 2
  for (int q = 0; q < Q; ++q) running[q][0] = running[q][1] = _mm256_setzero_ps();
  for (int64_t g = 0; g < kv_groups(head_dim); ++g) {
    __m256i sums[Q][4];  // of two dims each
#pragma GCC unroll 2
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sums[q][v] = _mm256_setzero_si256();
    for (int64_t d = g * KV_GROUP; d < std::min((g + 1) * KV_GROUP, head_dim); d += 4) {
      __m256i k[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        k[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes + d * PAGE + token * 4 + 16 * v));
      }
#pragma GCC unroll 2
      for (int q = 0; q < Q; ++q) {
        int64_t four;
        __builtin_memcpy(&four, queries.codes + q * queries.dims + d, sizeof four);
        const __m256i x = _mm256_set1_epi64x(four);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sums[q][v] = _mm256_add_epi32(sums[q][v], _mm256_madd_epi16(k[v], x));
      }
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256 scale = load_scales(page, key_codes(format, head_dim), g, token + 8 * half);
#pragma GCC unroll 2
      for (int q = 0; q < Q; ++q) {
        // Neighbours are added within 128 bits: tokens 0 1 4 5, 2 3 6 7.
        const __m256i mixed = _mm256_hadd_epi32(sums[q][2 * half], sums[q][2 * half + 1]);
        const __m256 whole = _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(mixed, 0b11011000));
        running[q][half] = _mm256_fmadd_ps(whole, scale, running[q][half]);
      }
    }
  }
#pragma GCC unroll 2
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256 score = _mm256_mul_ps(running[q][half], _mm256_set1_ps(queries.scales[q]));
      _mm256_storeu_ps(scores + q * PARTITION + 8 * half, score);
    }
}

}  // namespace puna::avx2_codes
