// AVX-512: 32 values of 16 columns out of their bit planes, as 8 operands of vpdpbusd.
#pragma once

#include <immintrin.h>

#include "panels.h"

namespace puna::avx512 {

// Shifts bits of each byte, left for a positive count; bits that cross into a neighbour are masked off by the caller.
template <int COUNT>
inline __m512i shifted(__m512i v) {
  if constexpr (COUNT > 0) return _mm512_slli_epi16(v, COUNT);
  else if constexpr (COUNT < 0) return _mm512_srli_epi16(v, -COUNT);
  else return v;
}

// low | (v shifted & mask) in one ternary operation.
template <int COUNT>
inline __m512i merged(__m512i low, __m512i v, __m512i mask) {
  return _mm512_ternarylogic_epi64(low, shifted<COUNT>(v), mask, 0xF8);
}

inline void nibbles(const uint8_t *p, __m512i w[8]) {
  const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i v = _mm512_load_si512(p + 64 * j);
    w[j] = _mm512_and_si512(v, mask);
    w[j + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
  }
}

inline void crumbs(const uint8_t *p, __m512i w[8]) {
  const __m512i mask = _mm512_set1_epi8(3);
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m512i v = _mm512_load_si512(p + 64 * j);
    w[j] = _mm512_and_si512(v, mask);
    w[j + 2] = _mm512_and_si512(_mm512_srli_epi16(v, 2), mask);
    w[j + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
    w[j + 6] = _mm512_and_si512(_mm512_srli_epi16(v, 6), mask);
  }
}

// Adds a crumb plane above the low 4 bits.
inline void add_crumbs(const uint8_t *p, __m512i w[8]) {
  const __m512i mask = _mm512_set1_epi8(3 << 4);
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m512i v = _mm512_load_si512(p + 64 * j);
    w[j] = merged<4>(w[j], v, mask);
    w[j + 2] = merged<2>(w[j + 2], v, mask);
    w[j + 4] = merged<0>(w[j + 4], v, mask);
    w[j + 6] = merged<-2>(w[j + 6], v, mask);
  }
}

// Adds a bit plane above the low AT bits.
template <int AT>
inline void add_bits(const uint8_t *p, __m512i w[8]) {
  const __m512i mask = _mm512_set1_epi8(1 << AT);
  const __m512i v = _mm512_load_si512(p);
  w[0] = merged<AT - 0>(w[0], v, mask);
  w[1] = merged<AT - 1>(w[1], v, mask);
  w[2] = merged<AT - 2>(w[2], v, mask);
  w[3] = merged<AT - 3>(w[3], v, mask);
  w[4] = merged<AT - 4>(w[4], v, mask);
  w[5] = merged<AT - 5>(w[5], v, mask);
  w[6] = merged<AT - 6>(w[6], v, mask);
  w[7] = merged<AT - 7>(w[7], v, mask);
}

template <PanelKind KIND>
inline void unpack(const uint8_t *p, __m512i w[8]) {
  if constexpr (KIND.bits == 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) w[j] = _mm512_load_si512(p + 64 * j);
  } else if constexpr (KIND.bits >= 4) {
    nibbles(p, w);
    if constexpr (KIND.bits == 6) add_crumbs(p + 4 * REGISTER, w);
    if constexpr (KIND.bits == 5) add_bits<4>(p + 4 * REGISTER, w);
  } else {
    crumbs(p, w);
    if constexpr (KIND.bits == 3) add_bits<2>(p + 2 * REGISTER, w);
  }
  if constexpr (KIND.table != Table::none) {
    const uint8_t *values = (KIND.table == Table::iq4 ? IQ4 : MXFP4).data();
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(values)));
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) w[j] = _mm512_shuffle_epi8(table, w[j]);
  }
}

template <Number NUMBER>
inline __m512 sixteen(const uint8_t *p) {
  if constexpr (NUMBER == Number::f32) return _mm512_loadu_ps(p);
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
  if constexpr (NUMBER == Number::f16) return _mm512_cvtph_ps(half);
  else return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

}  // namespace puna::avx512
