// Quantised pages in AVX-512: scores as sums of products of bytes, values widened beside the FMAs that use them.
#pragma once

#include <immintrin.h>

#include "kv_codes.h"

namespace puna::avx512 {

constexpr int64_t CODED = 6;  // queries that share a load

static inline const uint8_t *bytes_of(const void *page, int64_t at) { return static_cast<const uint8_t *>(page) + at; }

static inline __m512 load_scales(const uint8_t *scales) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(scales));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// The codebook in each quarter of a vector, as bytes above zero.
static inline __m512i biased_codebook() {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(CODEBOOK));
  return _mm512_broadcast_i32x4(_mm_xor_si128(codes, _mm_set1_epi8(-128)));
}

static inline __m512 codebook_floats() {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(CODEBOOK))));
}

// Sums of Q queries for 32 tokens, high and low bytes of the queries apart.
template <int Q>
struct CodeSums {
  __m512i high[Q][2], low[Q][2];

  // The bias of 128 in every key is taken from the low sum beforehand.
  void start(const QueryCodes &queries, int64_t group) {
    const int64_t groups = queries.dims / KV_GROUP;
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        high[q][v] = _mm512_setzero_si512();
        low[q][v] = _mm512_set1_epi32(-128 * queries.sums[q * groups + group]);
      }
    }
  }

  // Four dims from d on, of which k holds 16 tokens' codes.
  void add(const QueryCodes &queries, int64_t d, const __m512i (&k)[2]) {
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const auto four = [&](const int8_t *from) {
        int32_t word;
        __builtin_memcpy(&word, from + q * queries.dims + d, sizeof word);
        return _mm512_set1_epi32(word);
      };
      const __m512i h = four(queries.high), l = four(queries.low);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        high[q][v] = _mm512_dpbusd_epi32(high[q][v], k[v], h);
        low[q][v] = _mm512_dpbusd_epi32(low[q][v], k[v], l);
      }
    }
  }

  __m512 whole(int q, int v) const { return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[q][v], 8), low[q][v])); }
};

// Adds dims [from, to) of a group of a page of keys.
template <KV F, int Q>
void add_dims(const uint8_t *keys, int64_t from, int64_t to, const QueryCodes &queries, CodeSums<Q> &sums) {
  if constexpr (F == KV::q8) {
    for (int64_t d = from; d < to; d += 4) {
      const __m512i k[2] = {_mm512_loadu_si512(keys + d * PAGE), _mm512_loadu_si512(keys + d * PAGE + 64)};
      sums.add(queries, d, k);
    }
  } else {
    const __m512i codebook = biased_codebook(), low_half = _mm512_set1_epi8(0xf);
    const auto decode = [&](__m512i i) { return _mm512_shuffle_epi8(codebook, _mm512_and_si512(i, low_half)); };
    for (int64_t d = from; d < to; d += 8) {
      const __m512i a = _mm512_loadu_si512(keys + d * PAGE / 2), b = _mm512_loadu_si512(keys + d * PAGE / 2 + 64);
      const __m512i low[2] = {decode(a), decode(b)};
      sums.add(queries, d, low);
      const __m512i high[2] = {decode(_mm512_srli_epi16(a, 4)), decode(_mm512_srli_epi16(b, 4))};
      sums.add(queries, d + 4, high);
    }
  }
}

// Scores of a page for Q queries; meanwhile the lines of `ahead` are asked for, which lies as the page does.
template <KV F, int Q>
void score_codes(const QueryCodes &queries, int64_t head_dim, const void *keys, const void *ahead, float *scores) {
  const uint8_t *scales = bytes_of(keys, key_codes(F, head_dim));
  const int64_t each = (key_bytes(F, head_dim) / kv_groups(head_dim) + 63) / 64 * 64;  // bytes of a group
  for (int64_t g = 0; g < kv_groups(head_dim); ++g) {
    for (int64_t byte = g * each; ahead && byte < (g + 1) * each; byte += 64) _mm_prefetch(bytes_of(ahead, byte), _MM_HINT_T1);
    CodeSums<Q> sums;
    sums.start(queries, g);
    add_dims<F, Q>(bytes_of(keys, 0), g * KV_GROUP, std::min((g + 1) * KV_GROUP, head_dim), queries, sums);
    const bool last = (g + 1) * KV_GROUP >= head_dim;
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m512 scale = load_scales(scales + (g * PAGE + 16 * v) * 2);
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) {
        float *to = scores + q * PARTITION + 16 * v;
        __m512 score = _mm512_fmadd_ps(sums.whole(q, v), scale, g ? _mm512_load_ps(to) : _mm512_setzero_ps());
        if (last) score = _mm512_mul_ps(score, _mm512_set1_ps(queries.scales[q]));
        _mm512_store_ps(to, score);
      }
    }
  }
}

// Sixteen codes of values from element i on, of a page whose tokens have whole groups of columns (q4) or whole vectors (q8).
template <KV F>
__m512 load_codes(const void *page, int64_t i) {
  if constexpr (F == KV::q8) {
    const auto *codes = reinterpret_cast<const __m128i *>(bytes_of(page, i));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes)));
  } else {
    const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes_of(page, i / KV_GROUP * 16))));
    // Of each index the lowest four bits count.
    return _mm512_permutexvar_ps(i % KV_GROUP ? _mm512_srli_epi32(pairs, 4) : pairs, codebook_floats());
  }
}

}  // namespace puna::avx512
