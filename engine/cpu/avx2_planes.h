// AVX2: operands of a byte dot product, 8 columns by 4 consecutive k, out of the bit planes of a group of 32 values.
#pragma once

#include <immintrin.h>

#include <array>

#include "panels.h"

namespace puna {
namespace {

constexpr int HALF_REGISTER = 32;  // bytes of 8 columns, half of a panel's register

inline __m256i load256(const uint8_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }

// Bits of each byte moved left for a positive count; what crosses into a neighbour is masked off.
inline __m256i moved(__m256i v, int count, int mask) {
  const __m256i there = count >= 0 ? _mm256_slli_epi16(v, count) : _mm256_srli_epi16(v, -count);
  return _mm256_and_si256(there, _mm256_set1_epi8(static_cast<char>(mask)));
}

// Register j of a group as codes, one in each byte; `p` is the column half of its planes.
template <PanelKind KIND>
inline __m256i codes(const uint8_t *p, int j) {
  if constexpr (KIND.bits == 8) return load256(p + REGISTER * j);
  if constexpr (KIND.bits >= 4) {
    const __m256i low = moved(load256(p + REGISTER * (j % 4)), j < 4 ? 0 : -4, 15);
    const uint8_t *above = p + 4 * REGISTER;
    if constexpr (KIND.bits == 6) return _mm256_or_si256(low, moved(load256(above + REGISTER * (j % 2)), 4 - 2 * (j / 2), 3 << 4));
    if constexpr (KIND.bits == 5) return _mm256_or_si256(low, moved(load256(above), 4 - j, 1 << 4));
    return low;
  }
  const __m256i low = moved(load256(p + REGISTER * (j % 2)), -2 * (j / 2), 3);
  if constexpr (KIND.bits == 3) return _mm256_or_si256(low, moved(load256(p + 2 * REGISTER), 2 - j, 1 << 2));
  return low;
}

using Entries = std::array<uint8_t, 16>;

// The entries of a table at 32 codes of 4 bits.
inline __m256i looked_up(const Entries &entries, __m256i codes) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i *>(entries.data()));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes);
}

template <Number NUMBER>
inline __m256 eight(const uint8_t *p) {
  if constexpr (NUMBER == Number::f32) return _mm256_loadu_ps(reinterpret_cast<const float *>(p));
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
  if constexpr (NUMBER == Number::f16) return _mm256_cvtph_ps(half);
  else return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

}  // namespace
}  // namespace puna
