// Quantised pages in NEON: scores as sums of products of bytes, values brought to float32 once for the tile.
#pragma once

#include <arm_neon.h>

#include <algorithm>

#include "kv_codes.h"

namespace puna::neon {
namespace {

inline const uint8_t *bytes_of(const void *page, int64_t at) { return static_cast<const uint8_t *>(page) + at; }

// What sixteen indices of q4 stand for: those in the low halves of bytes, or in the high halves.
inline int8x16_t decode_low(uint8x16_t pairs) { return vqtbl1q_s8(vld1q_s8(CODEBOOK), vandq_u8(pairs, vdupq_n_u8(0xf))); }
inline int8x16_t decode_high(uint8x16_t pairs) { return vqtbl1q_s8(vld1q_s8(CODEBOOK), vshrq_n_u8(pairs, 4)); }

inline float32x4_t load_scales(const void *page, int64_t codes, int64_t group, int64_t token) {
  const auto *scales = reinterpret_cast<const uint16_t *>(bytes_of(page, codes)) + group * PAGE + token;
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(scales), 16));
}

// Values of a page as (PAGE, whole groups (q4) or vectors (q8) of columns).
template <KV F>
void widen_values(const void *page, int64_t head_dim, float *to) {
  const auto put = [&](int64_t i, int8x16_t codes) {
    for (const int16x8_t eight : {vmovl_s8(vget_low_s8(codes)), vmovl_s8(vget_high_s8(codes))}) {
      vst1q_f32(to + i, vcvtq_f32_s32(vmovl_s16(vget_low_s16(eight))));
      vst1q_f32(to + i + 4, vcvtq_f32_s32(vmovl_s16(vget_high_s16(eight))));
      i += 8;
    }
  };
  for (int64_t i = 0; i < value_codes(F, head_dim); i += 16) {
    const uint8x16_t x = vld1q_u8(bytes_of(page, i));
    if constexpr (F == KV::q8) put(i, vreinterpretq_s8_u8(x));
    else put(2 * i, decode_low(x)), put(2 * i + 16, decode_high(x));
  }
}

// Sums of Q queries for 16 tokens, high and low bytes of the queries apart.
template <int Q>
struct CodeSums {
  int32x4_t high[Q][4], low[Q][4];

  CodeSums() {
    for (int q = 0; q < Q; ++q)
      for (int v = 0; v < 4; ++v) high[q][v] = low[q][v] = vdupq_n_s32(0);
  }

  // Four dims from d on, of which k holds the tokens' codes.
  void add(const QueryCodes &queries, int64_t d, const int8x16_t (&k)[4]) {
#pragma GCC unroll 2
    for (int q = 0; q < Q; ++q) {
      const auto four = [&](const int8_t *from) {
        int32_t word;
        __builtin_memcpy(&word, from + q * queries.dims + d, sizeof word);
        return vreinterpretq_s8_s32(vdupq_n_s32(word));
      };
      const int8x16_t h = four(queries.high), l = four(queries.low);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        high[q][v] = vdotq_s32(high[q][v], k[v], h);
        low[q][v] = vdotq_s32(low[q][v], k[v], l);
      }
    }
  }

  float32x4_t whole(int q, int v) const { return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(high[q][v], 8), low[q][v])); }
};

// Adds a group's dims [from, to) of 16 tokens from `token` on.
template <KV F, int Q>
void add_dims(const void *page, int64_t token, int64_t from, int64_t to, const QueryCodes &queries, CodeSums<Q> &sums) {
  constexpr int64_t STEP = F == KV::q8 ? 4 : 8;
  for (int64_t d = from; d < to; d += STEP) {
    const uint8_t *codes = bytes_of(page, (d / STEP * PAGE + token) * 4);
    int8x16_t low[4], high[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const uint8x16_t x = vld1q_u8(codes + 16 * v);
      if constexpr (F == KV::q8) low[v] = vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(0x80)));
      else low[v] = decode_low(x), high[v] = decode_high(x);
    }
    sums.add(queries, d, low);
    if constexpr (F == KV::q4) sums.add(queries, d + 4, high);
  }
}

// Scores of a page for Q queries.
template <KV F, int Q>
void score_codes(const QueryCodes &queries, int64_t head_dim, const void *page, float *scores) {
  for (int64_t token = 0; token < PAGE; token += 16) {
    float32x4_t running[Q][4];
    for (int q = 0; q < Q; ++q)
      for (int v = 0; v < 4; ++v) running[q][v] = vdupq_n_f32(0);
    for (int64_t g = 0; g < kv_groups(head_dim); ++g) {
      CodeSums<Q> sums;
      add_dims<F, Q>(page, token, g * KV_GROUP, std::min((g + 1) * KV_GROUP, head_dim), queries, sums);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const float32x4_t scale = load_scales(page, key_codes(F, head_dim), g, token + 4 * v);
#pragma GCC unroll 2
        for (int q = 0; q < Q; ++q) running[q][v] = vfmaq_f32(running[q][v], sums.whole(q, v), scale);
      }
    }
    for (int q = 0; q < Q; ++q)
      for (int v = 0; v < 4; ++v) {
        vst1q_f32(scores + q * PARTITION + token + 4 * v, vmulq_n_f32(running[q][v], queries.scales[q]));
      }
  }
}

}  // namespace
}  // namespace puna::neon
