// AVX-512 VNNI: up to 8 rows of activations along one panel, one template for each arithmetic.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "avx512_planes.h"
#include "matmul.h"

namespace puna::avx512 {

// How far a strip reads ahead: panels follow each other in memory, and the hardware's own prefetch stops at every page.
// Measured for 8 rows from memory: 65 % of the byte-dot peak with it, 45 % without.
constexpr int64_t AHEAD = 4096;

inline __m512i broadcast(const void *four_bytes) {
  int32_t dword;
  std::memcpy(&dword, four_bytes, sizeof dword);
  return _mm512_set1_epi32(dword);
}

// start + sum over COUNT operands of w x q.
template <int COUNT>
inline __m512i dot(__m512i start, const __m512i *w, const int8_t *q) {
#pragma GCC unroll 8
  for (int j = 0; j < COUNT; ++j) start = _mm512_dpbusd_epi32(start, w[j], broadcast(q + 4 * j));
  return start;
}

constexpr int log2_of(int power) { return power == 1 ? 0 : 1 + log2_of(power / 2); }

// -zero * sum(q): where a sum over unsigned codes must start.
template <int ZERO>
inline __m512i start(int32_t negative_sum) {
  if constexpr (ZERO == 0) return _mm512_setzero_si512();
  else return _mm512_slli_epi32(_mm512_set1_epi32(negative_sum), log2_of(ZERO));
}

template <PanelKind KIND>
inline void read_ahead(const uint8_t *codes) {
#pragma GCC unroll 8
  for (int j = 0; j < KIND.bits; ++j) _mm_prefetch(codes + REGISTER * j + AHEAD, _MM_HINT_T0);
}

// 16 scale bytes, signed where the format's are.
template <PanelKind KIND>
inline __m512i scale_bytes(const uint8_t *p) {
  const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i *>(p));
  if constexpr (KIND.zero != 0) return _mm512_cvtepi8_epi32(bytes);
  else if constexpr (KIND.bits == 2) return _mm512_and_si512(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(15));
  else return _mm512_cvtepu8_epi32(bytes);
}

template <PanelKind KIND>
inline __m512i minimum_bytes(const uint8_t *p) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i *>(p)));
  if constexpr (KIND.bits == 2) return _mm512_srli_epi32(wide, 4);
  else return wide;
}

// Sum of (code - zero) q scale over 32 values, group g of the 128.
template <PanelKind KIND>
inline __m512i scaled_dot(const __m512i w[8], const __m512i scales[2], const Acts128 &a, int g) {
  const int8_t *q = a.q + GROUP * g;
  const int32_t *sums = a.negative_sums + 2 * g;
  if constexpr (KIND.sub == 32) return _mm512_mullo_epi32(dot<8>(start<KIND.zero>(sums[0] + sums[1]), w, q), scales[0]);
  const __m512i low = dot<4>(start<KIND.zero>(sums[0]), w, q);
  const __m512i high = dot<4>(start<KIND.zero>(sums[1]), w + 4, q + 16);
  return _mm512_add_epi32(_mm512_mullo_epi32(low, scales[0]), _mm512_mullo_epi32(high, scales[1]));
}

// The minima of 128 values in the form that minima_dot multiplies: pairs of int16, or int32 where they are per 16.
template <PanelKind KIND>
struct Minima {
  static constexpr int COUNT = KIND.sub == 32 ? 2 : 8;
  __m512i m[COUNT];

  explicit Minima(const uint8_t *p) {
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) {
      if constexpr (KIND.sub == 32) {
        const uint8_t *pair = p + 2 * i * COLUMNS;
        const __m512i high = _mm512_slli_epi32(minimum_bytes<KIND>(pair + COLUMNS), 16);
        m[i] = _mm512_or_si512(minimum_bytes<KIND>(pair), high);
      } else {
        m[i] = minimum_bytes<KIND>(p + i * COLUMNS);
      }
    }
  }

  // -(sum of minimum x q)
  __m512i dot(const Acts128 &a) const {
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) {
      if constexpr (KIND.sub == 32) sum = _mm512_dpwssd_epi32(sum, m[i], broadcast(a.negative_pairs + 2 * i));
      else sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(m[i], _mm512_set1_epi32(a.negative_sums[i])));
    }
    return sum;
  }
};

// acc[r] over all of K for a panel of sub-scaled codes.
template <PanelKind KIND, int R>
inline void subscaled_panel(const Strip &s, const uint8_t *panel, __m512 acc[R]) {
  constexpr Layout at = layout(KIND, 0);
  constexpr int64_t half_width = 128 / KIND.sub * COLUMNS, group_width = GROUP / KIND.sub * COLUMNS;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
  for (int64_t h = 0; h < 2 * s.superblocks; ++h) {
    const int64_t half = h % 2;
    const uint8_t *block = panel + h / 2 * at.bytes, *codes = block + at.codes + half * 4 * REGISTER * KIND.bits;
    const uint8_t *scales = block + at.scales + half * half_width, *mins = block + at.mins + half * half_width;
    const auto acts = [&](int r) -> const Acts128 & {
      return reinterpret_cast<const Acts128 *>(s.acts + r * s.acts_stride)[h];
    };
    __m512i sums[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r] = _mm512_setzero_si512();
    for (int g = 0; g < 4; ++g) {
      __m512i w[8], sc[2];
      read_ahead<KIND>(codes + g * REGISTER * KIND.bits);
      unpack<KIND>(codes + g * REGISTER * KIND.bits, w);
      sc[0] = scale_bytes<KIND>(scales + g * group_width);
      if constexpr (KIND.sub == 16) sc[1] = scale_bytes<KIND>(scales + g * group_width + COLUMNS);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r] = _mm512_add_epi32(sums[r], scaled_dot<KIND>(w, sc, acts(r), g));
    }
    const __m512 d = sixteen<Number::f16>(block);
    if constexpr (KIND.mins) {
      const __m512 dmin = sixteen<Number::f16>(block + 2 * COLUMNS);
      const Minima<KIND> minima(mins);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512 t = _mm512_mul_ps(d, _mm512_cvtepi32_ps(sums[r]));
        const __m512 u = _mm512_fmadd_ps(dmin, _mm512_cvtepi32_ps(minima.dot(acts(r))), t);
        acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(acts(r).scale), u, acc[r]);
      }
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512 t = _mm512_mul_ps(d, _mm512_cvtepi32_ps(sums[r]));
        acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(acts(r).scale), t, acc[r]);
      }
    }
  }
}

// acc[r] over all of K for a panel whose groups have scales, and perhaps biases, of their own.
template <PanelKind KIND, int R>
inline void grouped_panel(const Strip &s, const uint8_t *panel, __m512 acc[R]) {
  constexpr int64_t width = COLUMNS * bytes_of(KIND.number);
  const Layout at = layout(KIND, s.group);
  const int64_t per_scale = s.group / GROUP;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
  for (int64_t b = 0; b < s.superblocks; ++b) {
    const uint8_t *block = panel + b * at.bytes;
    for (int64_t g = 0; g < GROUPS; ++g) {
      const uint8_t *codes = block + at.codes + g * REGISTER * KIND.bits;
      __m512i w[8];
      read_ahead<KIND>(codes);
      unpack<KIND>(codes, w);
      const __m512 scale = sixteen<KIND.number>(block + g / per_scale * width);
      [[maybe_unused]] __m512 bias;
      if constexpr (KIND.mins) bias = sixteen<KIND.number>(block + at.mins + g / per_scale * width);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Acts32 &a = reinterpret_cast<const Acts32 *>(s.acts + r * s.acts_stride)[b];
        const __m512 t = _mm512_cvtepi32_ps(dot<8>(start<KIND.zero>(a.negative_sums[g]), w, a.q + GROUP * g));
        acc[r] = _mm512_fmadd_ps(t, _mm512_mul_ps(scale, _mm512_set1_ps(a.scales[g])), acc[r]);
        if constexpr (KIND.mins) acc[r] = _mm512_fmadd_ps(bias, _mm512_set1_ps(a.sums[g]), acc[r]);
      }
    }
  }
}

// acc[p][r] over all of K for P dense panels: a chain is 4 cycles a step, so a lone row needs several at once.
template <PanelKind KIND, int R, int P>
inline void dense_panels(const Strip &s, const uint8_t *panel, __m512 acc[P][R]) {
  constexpr int64_t width = COLUMNS * bytes_of(KIND.number);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[p][r] = _mm512_setzero_ps();
  for (int64_t k = 0; k < s.superblocks * SUPERBLOCK; ++k) {
    __m512 w[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const uint8_t *values = panel + p * s.panel_bytes + k * width;
      _mm_prefetch(values + AHEAD, _MM_HINT_T0);
      w[p] = sixteen<KIND.number>(values);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512 x = _mm512_set1_ps(reinterpret_cast<const float *>(s.acts + r * s.acts_stride)[k]);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) acc[p][r] = _mm512_fmadd_ps(x, w[p], acc[p][r]);
    }
  }
}

}  // namespace puna::avx512
