// AVX2: up to 8 rows of activations along one panel, for the two ways that CPUs without AVX-512 sum products of bytes.
//
// A template parameter DOT says how: what the 8 registers of a group become as operands, at most how many sums of products fit in
// what they are added to before `whole` or `scaled` makes int32 of them, and ZERO, how far operands are above the values.
#pragma once

#include <immintrin.h>

#include <cstring>
#include <utility>

#include "avx2_acts.h"
#include "avx2_planes.h"
#include "matmul.h"

namespace puna {
namespace {

// How far a strip reads ahead: panels follow each other in memory, and the hardware's own prefetch stops at every page.
constexpr int64_t AHEAD = 4096;

// Rows whose sums stay in registers: 4 by 2 column halves of int16 or int32, beside two operands and an activation.
constexpr int TALL = 4;

// A strip's rows are taken TALL at most at a time.
constexpr int first_rows(int rows) { return rows > TALL ? (rows + 1) / 2 : rows; }

inline __m256i broadcast(const void *four_bytes) {
  int32_t dword;
  std::memcpy(&dword, four_bytes, sizeof dword);
  return _mm256_set1_epi32(dword);
}

inline __m128i eight_bytes(const uint8_t *p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)); }

// Where the operands of a group come from: its planes, or a place that holds them whole, for more rows than are taken at once.
// A compiler that forgets the place loads again what else it would carry, and spill, from rows to rows.
template <template <PanelKind> class DOT, PanelKind KIND>
struct FromPlanes {
  const uint8_t *at;
  void forget() { asm volatile("" : "+r"(at)); }
  __m256i operator()(int i, int half) const { return DOT<KIND>::operand(at + HALF_REGISTER * half, i); }
};

struct Whole {
  const uint8_t *at;
  void forget() { asm volatile("" : "+r"(at)); }
  __m256i operator()(int i, int half) const { return load256(at + REGISTER * i + HALF_REGISTER * half); }
};

// The activations of a group, row by row.
struct Rows {
  const int8_t *at;
  int64_t stride;
  void forget() { asm volatile("" : "+r"(at)); }
  const int8_t *operator()(int r) const { return at + r * stride; }
};

template <class Dot>
struct Unpacked {
  alignas(64) uint8_t bytes[8 * REGISTER];

  Whole from(const uint8_t *planes) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m256i w = Dot::operand(planes + HALF_REGISTER * half, i);
        _mm256_store_si256(reinterpret_cast<__m256i *>(bytes + REGISTER * i + HALF_REGISTER * half), w);
      }
    }
    asm volatile("" : "+m"(bytes));
    return {bytes};
  }
};

// Place n of the order in which a group's operands are added: where a scale holds for all of them, the two that lie in the low and
// the high bits of one plane follow each other.
template <PanelKind KIND>
constexpr int nth(int n) {
  return KIND.sub == 16 ? n : n % 2 * 4 + n / 2;
}

// sum[r] = the products of COUNT operands from place `first` on with the activations q(r) of a group.
template <class Dot, PanelKind KIND, int R, int COUNT, class Operands>
inline void dot(Operands operands, Rows q, int first, __m256i sum[R][2]) {
  operands.forget();
  q.forget();
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int n = first; n < first + COUNT; ++n) {
    const int i = nth<KIND>(n);
    const __m256i low = operands(i, 0), high = operands(i, 1);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m256i four = broadcast(q(r) + 4 * i);
      sum[r][0] = Dot::add(sum[r][0], low, four);
      sum[r][1] = Dot::add(sum[r][1], high, four);
    }
  }
}

template <PanelKind KIND>
inline void read_ahead(const uint8_t *codes) {
#pragma GCC unroll 8
  for (int j = 0; j < KIND.bits; ++j) _mm_prefetch(codes + REGISTER * j + AHEAD, _MM_HINT_T0);
}

// 8 scale bytes, or minima; 2-bit codes have both in one.
template <PanelKind KIND>
inline __m128i scale_bytes(const uint8_t *p) {
  const __m128i bytes = eight_bytes(p);
  return KIND.bits == 2 ? _mm_and_si128(bytes, _mm_set1_epi8(15)) : bytes;
}
template <PanelKind KIND>
inline __m128i minimum_bytes(const uint8_t *p) {
  const __m128i bytes = eight_bytes(p);
  return KIND.bits == 2 ? _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15)) : bytes;
}

// What multiplies the sums of activations: the minima of 128 values or, of a kind that has a zero, its scales. Pairs of int16.
template <class Dot, PanelKind KIND>
struct Offsets {
  static constexpr int COUNT = 64 / KIND.sub;
  static constexpr bool NEEDED = KIND.mins || Dot::ZERO != 0;
  __m256i pairs[COUNT][2];

  Offsets(const uint8_t *scales, const uint8_t *mins) {
#pragma GCC unroll 8
    for (int i = 0; i < 2 * COUNT; ++i) {
      const int64_t at = i / 2 * 2 * COLUMNS + i % 2 * 8;
      if constexpr (KIND.mins) {
        pairs[i / 2][i % 2] = _mm256_cvtepu8_epi16(
            _mm_unpacklo_epi8(minimum_bytes<KIND>(mins + at), minimum_bytes<KIND>(mins + at + COLUMNS)));
      } else {
        pairs[i / 2][i % 2] =
            _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(eight_bytes(scales + at), eight_bytes(scales + at + COLUMNS)));
      }
    }
  }

  // -(sum of offset x sum(q))
  void dot(const Acts128 &a, __m256i sum[2]) const {
    sum[0] = sum[1] = _mm256_setzero_si256();
    const auto *sums = reinterpret_cast<const __m128i *>(a.negative_sums);
    const __m256i words = _mm256_broadcastsi128_si256(_mm_packs_epi32(_mm_loadu_si128(sums), _mm_loadu_si128(sums + 1)));
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) {
      const __m256i pair = KIND.sub == 32 ? broadcast(a.negative_pairs + 2 * i) : chosen(words, i);
      for (int half = 0; half < 2; ++half) sum[half] = Dot::add_pairs(sum[half], pairs[i][half], pair);
    }
  }

 private:
  static __m256i chosen(__m256i words, int i) {
    switch (i) {
      case 0: return _mm256_shuffle_epi32(words, 0x00);
      case 1: return _mm256_shuffle_epi32(words, 0x55);
      case 2: return _mm256_shuffle_epi32(words, 0xAA);
      default: return _mm256_shuffle_epi32(words, 0xFF);
    }
  }
};

constexpr int log2_of(int power) { return power == 1 ? 0 : 1 + log2_of(power / 2); }

// ZERO times whole numbers.
template <int ZERO>
inline __m256i times_zero(__m256i v) {
  if constexpr (ZERO == 0) return _mm256_setzero_si256();
  else if constexpr (ZERO > 0) return _mm256_slli_epi32(v, log2_of(ZERO));
  else return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(v, log2_of(-ZERO)));
}

// Adds the scaled products of a group to sums[r].
template <class Dot, PanelKind KIND, int R, class Operands>
inline void add_group(const Operands &operands, const uint8_t *scales, const Rows &q, __m256i sums[R][2]) {
  constexpr int COUNT = Dot::FITTING < KIND.sub / 4 ? Dot::FITTING : KIND.sub / 4;
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += COUNT) {
    const uint8_t *bytes = scales + i / (KIND.sub / 4) * COLUMNS;
    __m256i sum[R][2];
    dot<Dot, KIND, R, COUNT>(operands, q, i, sum);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i scale = Dot::scales(scale_bytes<KIND>(bytes + 8 * half));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256i scaled = Dot::scaled(sum[r][half], scale);
        sums[r][half] = _mm256_add_epi32(sums[r][half], scaled);
      }
    }
  }
}

// The places of 128 values in a panel.
struct Places {
  const uint8_t *numbers, *scales, *mins;
};

// acc[r] takes its FMA for the 128 values whose products are in sums[r].
template <class Dot, PanelKind KIND, int R, class Acts>
inline void add_half(const Places &at, const Acts &acts, const __m256i sums[R][2], __m256 acc[R][2]) {
  const Offsets<Dot, KIND> offsets(at.scales, at.mins);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Acts128 &a = acts(r);
    const __m256 scale = _mm256_set1_ps(a.scale);
    __m256i offset[2];
    if constexpr (Offsets<Dot, KIND>::NEEDED) offsets.dot(a, offset);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256 d = eight<Number::f16>(at.numbers + COLUMNS * half);
      __m256i sum = sums[r][half];
      if constexpr (Dot::ZERO != 0) sum = _mm256_add_epi32(sum, times_zero<Dot::ZERO>(offset[half]));
      __m256 t = _mm256_mul_ps(d, _mm256_cvtepi32_ps(sum));
      if constexpr (KIND.mins) {
        const __m256 dmin = eight<Number::f16>(at.numbers + 2 * COLUMNS + COLUMNS * half);
        t = _mm256_fmadd_ps(dmin, _mm256_cvtepi32_ps(offset[half]), t);
      }
      acc[r][half] = _mm256_fmadd_ps(scale, t, acc[r][half]);
    }
  }
}

template <int R>
inline void clear(__m256i sums[R][2]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
}

// acc[r] over all of K for a panel of sub-scaled codes.
template <template <PanelKind> class DOT, PanelKind KIND, int R>
inline void subscaled_panel(const Strip &s, const uint8_t *panel, __m256 acc[R][2]) {
  using Dot = DOT<KIND>;
  constexpr Layout at = layout(KIND, 0);
  constexpr int64_t half_width = 128 / KIND.sub * COLUMNS, group_width = GROUP / KIND.sub * COLUMNS;
  constexpr int A = first_rows(R), B = R - A;
  for (int64_t h = 0; h < 2 * s.superblocks; ++h) {
    const int64_t half = h % 2;
    const uint8_t *block = panel + h / 2 * at.bytes, *codes = block + at.codes + half * 4 * REGISTER * KIND.bits;
    const Places places{block, block + at.scales + half * half_width, block + at.mins + half * half_width};
    const auto acts = [&](int r) -> const Acts128 & {
      return reinterpret_cast<const Acts128 *>(s.acts + r * s.acts_stride)[h];
    };
    const auto later = [&](int r) -> const Acts128 & { return acts(A + r); };
    __m256i sums[R][2];
    clear<R>(sums);
    for (int g = 0; g < 4; ++g) {
      const uint8_t *planes = codes + g * REGISTER * KIND.bits, *scales = places.scales + g * group_width;
      const Rows q{acts(0).q + GROUP * g, s.acts_stride};
      read_ahead<KIND>(planes);
      if constexpr (B == 0) {
        add_group<Dot, KIND, A>(FromPlanes<DOT, KIND>{planes}, scales, q, sums);
      } else {
        Unpacked<Dot> unpacked;
        const Whole operands = unpacked.from(planes);
        add_group<Dot, KIND, A>(operands, scales, q, sums);
        add_group<Dot, KIND, B>(operands, scales, {q(A), q.stride}, sums + A);
      }
    }
    add_half<Dot, KIND, A>(places, acts, sums, acc);
    if constexpr (B != 0) add_half<Dot, KIND, B>(places, later, sums + A, acc + A);
  }
}

// A group's scales, and perhaps biases, as float32.
template <PanelKind KIND>
struct GroupNumbers {
  __m256 scale[2], bias[2];

  GroupNumbers(const uint8_t *scales, const uint8_t *biases) {
    constexpr int64_t half_width = 8 * bytes_of(KIND.number);
    for (int half = 0; half < 2; ++half) {
      scale[half] = eight<KIND.number>(scales + half * half_width);
      if constexpr (KIND.mins) bias[half] = eight<KIND.number>(biases + half * half_width);
    }
  }
};

// acc[r] takes its FMAs for group g of the superblock in acts(r).
template <class Dot, PanelKind KIND, int R, class Operands, class Acts>
inline void chain_group(const Operands &operands, const GroupNumbers<KIND> &numbers, const Acts &acts, const Rows &q, int64_t g,
                        __m256 acc[R][2]) {
  __m256i sums[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    sums[r][0] = sums[r][1] = times_zero<Dot::ZERO>(_mm256_set1_epi32(acts(r).negative_sums[g]));
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += Dot::FITTING) {
    __m256i sum[R][2];
    dot<Dot, KIND, R, Dot::FITTING>(operands, q, i, sum);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      for (int half = 0; half < 2; ++half)
        sums[r][half] = _mm256_add_epi32(sums[r][half], Dot::whole(sum[r][half]));
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const __m256 scale = _mm256_set1_ps(acts(r).scales[g]), sum = _mm256_set1_ps(acts(r).sums[g]);
    for (int half = 0; half < 2; ++half) {
      __m256 &y = acc[r][half];
      y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[r][half]), _mm256_mul_ps(numbers.scale[half], scale), y);
      if constexpr (KIND.mins) y = _mm256_fmadd_ps(numbers.bias[half], sum, y);
    }
  }
}

// acc[r] over all of K for a panel whose groups have scales, and perhaps biases, of their own.
template <template <PanelKind> class DOT, PanelKind KIND, int R>
inline void grouped_panel(const Strip &s, const uint8_t *panel, __m256 acc[R][2]) {
  using Dot = DOT<KIND>;
  constexpr int64_t width = COLUMNS * bytes_of(KIND.number);
  constexpr int A = first_rows(R), B = R - A;
  const Layout at = layout(KIND, s.group);
  const int64_t per_scale = s.group / GROUP;
  for (int64_t b = 0; b < s.superblocks; ++b) {
    const uint8_t *block = panel + b * at.bytes;
    const auto acts = [&](int r) -> const Acts32 & {
      return reinterpret_cast<const Acts32 *>(s.acts + r * s.acts_stride)[b];
    };
    const auto later = [&](int r) -> const Acts32 & { return acts(A + r); };
    for (int64_t g = 0; g < GROUPS; ++g) {
      const uint8_t *planes = block + at.codes + g * REGISTER * KIND.bits;
      const GroupNumbers<KIND> numbers(block + g / per_scale * width, block + at.mins + g / per_scale * width);
      const Rows q{acts(0).q + GROUP * g, s.acts_stride};
      read_ahead<KIND>(planes);
      if constexpr (B == 0) {
        chain_group<Dot, KIND, A>(FromPlanes<DOT, KIND>{planes}, numbers, acts, q, g, acc);
      } else {
        Unpacked<Dot> unpacked;
        const Whole operands = unpacked.from(planes);
        chain_group<Dot, KIND, A>(operands, numbers, acts, q, g, acc);
        chain_group<Dot, KIND, B>(operands, numbers, later, {q(A), q.stride}, g, acc + A);
      }
    }
  }
}

// acc[p][r] over all of K for P dense panels: a chain is 4 cycles a step, so that few rows need several panels at once.
template <PanelKind KIND, int R, int P>
inline void dense_panels(const Strip &s, const uint8_t *panel, int64_t first_row, __m256 acc[P][R][2]) {
  constexpr int64_t width = COLUMNS * bytes_of(KIND.number);
  const uint8_t *acts = s.acts + first_row * s.acts_stride;
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < R; ++r) acc[p][r][0] = acc[p][r][1] = _mm256_setzero_ps();
  for (int64_t k = 0; k < s.superblocks * SUPERBLOCK; ++k) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const uint8_t *values = panel + p * s.panel_bytes + k * width;
      _mm_prefetch(values + AHEAD, _MM_HINT_T0);
      const __m256 low = eight<KIND.number>(values), high = eight<KIND.number>(values + width / 2);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256 x = _mm256_set1_ps(reinterpret_cast<const float *>(acts + r * s.acts_stride)[k]);
        acc[p][r][0] = _mm256_fmadd_ps(x, low, acc[p][r][0]);
        acc[p][r][1] = _mm256_fmadd_ps(x, high, acc[p][r][1]);
      }
    }
  }
}

// Sums of a panel go out, with bias and residual where they are given; columns past the last are not touched.
template <int R>
inline void store(const Strip &s, int64_t first_row, int64_t first_column, const __m256 acc[R][2]) {
  for (int half = 0; half < 2; ++half) {
    const int64_t column = first_column + 8 * half;
    const __m256i mask = first_lanes(s.columns - column);
    for (int64_t r = 0; r < R; ++r) {
      const int64_t at = (first_row + r) * s.out_stride + column;
      __m256 y = acc[r][half];
      if (s.bias) y = _mm256_add_ps(y, _mm256_maskload_ps(s.bias + column, mask));
      if (s.residual) y = _mm256_add_ps(y, _mm256_maskload_ps(s.residual + at, mask));
      _mm256_maskstore_ps(s.out + at, mask, y);
    }
  }
}

template <template <PanelKind> class DOT, PanelKind KIND, int R>
void quantised_rows(const Strip &s) {
  const uint8_t *panel = s.panels;
  for (int64_t column = 0; column < s.columns; column += COLUMNS, panel += s.panel_bytes) {
    __m256 acc[R][2];
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    if constexpr (KIND.arithmetic == Arithmetic::subscaled) subscaled_panel<DOT, KIND, R>(s, panel, acc);
    else grouped_panel<DOT, KIND, R>(s, panel, acc);
    store<R>(s, 0, column, acc);
  }
}

template <PanelKind KIND, int R>
void dense_rows(const Strip &s, int64_t first_row) {
  constexpr int P = R == 1 ? 4 : R == 2 ? 2 : 1;
  const uint8_t *panel = s.panels;
  int64_t column = 0;
  for (; column + (P - 1) * COLUMNS < s.columns; column += P * COLUMNS, panel += P * s.panel_bytes) {
    __m256 acc[P][R][2];
    dense_panels<KIND, R, P>(s, panel, first_row, acc);
    for (int p = 0; p < P; ++p) store<R>(s, first_row, column + p * COLUMNS, acc[p]);
  }
  for (; column < s.columns; column += COLUMNS, panel += s.panel_bytes) {
    __m256 acc[1][R][2];
    dense_panels<KIND, R, 1>(s, panel, first_row, acc);
    store<R>(s, first_row, column, acc[0]);
  }
}

// The number of rows chooses how many sums are in flight; it never changes a sum.
template <template <PanelKind> class DOT, PanelKind KIND, int R>
void rows_kernel(const Strip &s) {
  if constexpr (KIND.arithmetic != Arithmetic::dense) {
    quantised_rows<DOT, KIND, R>(s);
  } else {
    dense_rows<KIND, first_rows(R)>(s, 0);
    if constexpr (R > first_rows(R)) dense_rows<KIND, R - first_rows(R)>(s, first_rows(R));
  }
}

template <template <PanelKind> class DOT, PanelKind KIND>
void strip(const Strip &s) {
  static constexpr void (*by_rows[STRIP_ROWS])(const Strip &) = {
      rows_kernel<DOT, KIND, 1>, rows_kernel<DOT, KIND, 2>, rows_kernel<DOT, KIND, 3>, rows_kernel<DOT, KIND, 4>,
      rows_kernel<DOT, KIND, 5>, rows_kernel<DOT, KIND, 6>, rows_kernel<DOT, KIND, 7>, rows_kernel<DOT, KIND, 8>};
  by_rows[s.rows - 1](s);
}

template <template <PanelKind> class DOT, size_t... I>
constexpr MatmulKernels all_kinds(std::index_sequence<I...>) {
  return {{prepare128, prepare32, prepare_dense}, {strip<DOT, KINDS[I]>...}};
}

}  // namespace
}  // namespace puna
