// AVX-512 VNNI: up to 8 rows of activations along one panel, one template for each arithmetic.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstring>

#include "avx512_planes.h"
#include "matmul.h"

namespace puna::avx512 {

// A strip asks for the lines it will want, scales and all, since the hardware's own prefetch stops at every page: FAR ahead
// into L2, which may have far more misses in flight than L1, and into L1 shortly before use. Measured with two threads on
// Zen 4, 8 rows from memory: q4_k 22 GB/s so, 18 with every line asked into L1 at once, 14 with nothing. A lone row is
// as fast as memory and fares best if it only leads the hardware across pages, with a line for each run (q4_k: 99 % of what
// plain reads of two threads get, 91 % with every line, 96 % with none).
constexpr int64_t FAR = 6144, NEAR = 512;

template <int R, int LINES>
inline void read_ahead(const uint8_t *lines) {
#pragma GCC unroll 8
  for (int i = 0; i < LINES; ++i) {
    if (R > 1 || i == 0) _mm_prefetch(lines + 64 * i + FAR, _MM_HINT_T1);
    if (R > 1) _mm_prefetch(lines + 64 * i + NEAR, _MM_HINT_T0);
  }
}

inline __m512i broadcast(const void *four_bytes) {
  int32_t dword;
  std::memcpy(&dword, four_bytes, sizeof dword);
  return _mm512_set1_epi32(dword);
}

// sum + w x the four bytes at q. GCC would load q with an instruction of its own (up to 7 % of the time); the dot product
// takes its operand from memory and repeats it at no cost.
inline __m512i dot4(__m512i sum, __m512i w, const int8_t *q) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*reinterpret_cast<const char(*)[4]>(q)));
  return sum;
}

// sums[r] += COUNT operands of w x q(r). Rows are inside: a sum is a chain of 4 cycles a step, so 4 must be at work, and
// so close by that the core sees them (3 to 6 % faster than row by row).
template <int COUNT, int R, class Row>
inline void dots(__m512i sums[R], const __m512i *w, const Row &q) {
#pragma GCC unroll 8
  for (int j = 0; j < COUNT; ++j)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r] = dot4(sums[r], w[j], q(r) + 4 * j);
}

constexpr int log2_of(int power) { return power == 1 ? 0 : 1 + log2_of(power / 2); }

// -zero * sum(q): where a sum over unsigned codes must start.
template <int ZERO>
inline __m512i start(int32_t negative_sum) {
  if constexpr (ZERO == 0) return _mm512_setzero_si512();
  else return _mm512_slli_epi32(_mm512_set1_epi32(negative_sum), log2_of(ZERO));
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

// The sums of a row's 128 q in the form that the kind multiplies, made once and then broadcast from memory.
template <PanelKind KIND>
struct Sums {
  // Where sums over unsigned codes start, -zero * sum(q), for each 16 or each even pair of 16; or with minima for each 16,
  // -sum(q) as pairs of int16. Not used where the activations hold what is wanted.
  alignas(32) int32_t of[8];

  void take(const Acts128 &a) {
    const __m256i sums = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(a.negative_sums));
    if constexpr (KIND.zero != 0) {
      const __m256i starts = _mm256_slli_epi32(sums, log2_of(KIND.zero));
      const __m256i next = _mm256_shuffle_epi32(starts, 0xB1);
      _mm256_store_si256(reinterpret_cast<__m256i *>(of), KIND.sub == 16 ? starts : _mm256_add_epi32(starts, next));
    } else if constexpr (KIND.mins && KIND.sub == 16) {
      const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
      _mm_store_si128(reinterpret_cast<__m128i *>(of), pairs);
    }
  }
  const void *pair(const Acts128 &a, int i) const {
    if constexpr (KIND.sub == 16) return of + i;
    else return a.negative_pairs + 2 * i;
  }
};

// sums[r] += (code - zero) q scale over 32 values, group g of the 128.
template <PanelKind KIND, int R, class Row>
inline void add_group(__m512i sums[R], const __m512i w[8], const uint8_t *scales, const Row &acts,
                      const Sums<KIND> starts[R], int g) {
  constexpr int COUNT = KIND.sub / 4;
#pragma GCC unroll 2
  for (int i = 0; i < 8 / COUNT; ++i) {
    const __m512i scale = scale_bytes<KIND>(scales + i * COLUMNS);
    __m512i products[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if constexpr (KIND.zero == 0) products[r] = _mm512_setzero_si512();
      else products[r] = _mm512_set1_epi32(starts[r].of[2 * g + i]);
    }
    dots<COUNT, R>(products, w + COUNT * i, [&](int r) { return acts(r).q + GROUP * g + KIND.sub * i; });
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r] = _mm512_add_epi32(sums[r], _mm512_mullo_epi32(products[r], scale));
  }
}

// The minima of 128 values as pairs of int16.
template <PanelKind KIND>
struct Minima {
  static constexpr int COUNT = 64 / KIND.sub;
  __m512i pairs[COUNT];

  explicit Minima(const uint8_t *p) {
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) {
      const uint8_t *pair = p + 2 * i * COLUMNS;
      const __m512i high = _mm512_slli_epi32(minimum_bytes<KIND>(pair + COLUMNS), 16);
      pairs[i] = _mm512_or_si512(minimum_bytes<KIND>(pair), high);
    }
  }

  // -(sum of minimum x q)
  __m512i dot(const Acts128 &a, const Sums<KIND> &sums) const {
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) sum = _mm512_dpwssd_epi32(sum, pairs[i], broadcast(sums.pair(a, i)));
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
    if (half == 0) read_ahead<R, at.codes / 64>(block);
    Sums<KIND> row_sums[R];
    __m512i sums[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row_sums[r].take(acts(r)), sums[r] = _mm512_setzero_si512();
    for (int g = 0; g < 4; ++g) {
      __m512i w[8];
      read_ahead<R, KIND.bits>(codes + g * REGISTER * KIND.bits);
      unpack<KIND>(codes + g * REGISTER * KIND.bits, w);
      add_group<KIND, R>(sums, w, scales + g * group_width, acts, row_sums, g);
    }
    const __m512 d = sixteen<Number::f16>(block);
    if constexpr (KIND.mins) {
      const __m512 dmin = sixteen<Number::f16>(block + 2 * COLUMNS);
      const Minima<KIND> minima(mins);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512 t = _mm512_mul_ps(d, _mm512_cvtepi32_ps(sums[r]));
        const __m512 u = _mm512_fmadd_ps(dmin, _mm512_cvtepi32_ps(minima.dot(acts(r), row_sums[r])), t);
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
  // Groups are powers of two, and a division for each 32 values would be felt.
  const int to_scale = std::countr_zero(static_cast<uint64_t>(s.group / GROUP));
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
  for (int64_t b = 0; b < s.superblocks; ++b) {
    const uint8_t *block = panel + b * at.bytes;
    const auto acts = [&](int r) -> const Acts32 & {
      return reinterpret_cast<const Acts32 *>(s.acts + r * s.acts_stride)[b];
    };
    for (int64_t i = 0; i < at.codes; i += 64) read_ahead<R, 1>(block + i);
    for (int64_t g = 0; g < GROUPS; ++g) {
      const uint8_t *codes = block + at.codes + g * REGISTER * KIND.bits;
      __m512i w[8], sums[R];
      read_ahead<R, KIND.bits>(codes);
      unpack<KIND>(codes, w);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        sums[r] = start<KIND.zero>(acts(r).negative_sums[g]);
      }
      dots<8, R>(sums, w, [&](int r) { return acts(r).q + GROUP * g; });
      const __m512 scale = sixteen<KIND.number>(block + (g >> to_scale) * width);
      [[maybe_unused]] __m512 bias;
      if constexpr (KIND.mins) bias = sixteen<KIND.number>(block + at.mins + (g >> to_scale) * width);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512 t = _mm512_cvtepi32_ps(sums[r]);
        acc[r] = _mm512_fmadd_ps(t, _mm512_mul_ps(scale, _mm512_set1_ps(acts(r).scales[g])), acc[r]);
        if constexpr (KIND.mins) acc[r] = _mm512_fmadd_ps(bias, _mm512_set1_ps(acts(r).sums[g]), acc[r]);
      }
    }
  }
}

// Words FIRST .. FIRST + 15 as the upper halves of lanes: bf16 widened by one permutation where an instruction that widens
// would want a shift after it, and both take turns from the FMAs (5 % at 8 rows).
template <int FIRST>
inline __m512 upper_halves(__m512i words) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i from = _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(FIRST)), 16);
  return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, from, words));
}

// Two k of 16 columns.
template <Number NUMBER>
inline void two_k(const uint8_t *p, __m512 w[2]) {
  if constexpr (NUMBER == Number::bf16) {
    const __m512i words = _mm512_loadu_si512(p);
    w[0] = upper_halves<0>(words);
    w[1] = upper_halves<COLUMNS>(words);
  } else {
    w[0] = sixteen<NUMBER>(p);
    w[1] = sixteen<NUMBER>(p + COLUMNS * bytes_of(NUMBER));
  }
}

// acc[p][r] over all of K for P dense panels: a chain is 4 cycles a step, so a lone row needs several at once.
// vdpbf16ps would be faster and is not the law: it takes k in pairs, activations rounded to bf16, and by Intel's manual
// treats denormals as zero whatever MXCSR says.
template <PanelKind KIND, int R, int P>
inline void dense_panels(const Strip &s, const uint8_t *panel, __m512 acc[P][R]) {
  constexpr int64_t width = COLUMNS * bytes_of(KIND.number);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[p][r] = _mm512_setzero_ps();
  for (int64_t k = 0; k < s.superblocks * SUPERBLOCK; k += 2) {
    __m512 w[P][2];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const uint8_t *values = panel + p * s.panel_bytes + k * width;
      if (R > 1 || k % (4 * REGISTER / width) == 0) read_ahead<R, 2 * width / REGISTER>(values);
      two_k<KIND.number>(values, w[p]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512 x = _mm512_set1_ps(reinterpret_cast<const float *>(s.acts + r * s.acts_stride)[k + i]);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) acc[p][r] = _mm512_fmadd_ps(x, w[p][i], acc[p][r]);
      }
    }
  }
}

}  // namespace puna::avx512
