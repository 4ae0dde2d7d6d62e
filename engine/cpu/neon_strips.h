// NEON: up to 8 rows of activations along a few panels, one template for each arithmetic. `Tile` is Quads or Pairs.
#pragma once

#include <type_traits>

#include "matmul.h"
#include "neon_lanes.h"
#include "neon_planes.h"

namespace puna::neon {
namespace {

// Panels that a strip passes side by side: each use of the activations in L1 serves them all.
constexpr int64_t PANELS_AT_ONCE = 4;

// 16 integer sums are in flight: 8 rows by 8 columns, or 4 rows by 16, or what fewer rows leave of that.
constexpr int columns_in_flight(int rows) { return rows > 4 ? 2 : 4; }  // in vectors of 4

template <Number NUMBER>
inline float32x4_t four(const uint8_t *p) {
  if constexpr (NUMBER == Number::f32) return vreinterpretq_f32_u8(vld1q_u8(p));
  const uint8x8_t half = vld1_u8(p);
  if constexpr (NUMBER == Number::f16) return vcvt_f32_f16(vreinterpret_f16_u8(half));
  else return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(half), 16));
}

// A float for each row and column of a panel, as sums over K go on.
template <int R>
struct Chains {
  alignas(64) float sums[R][COLUMNS];
};

// Sums of integers whose operands were shifted, as floats: exact, as it is a power of two.
template <PanelKind KIND>
inline float32x4_t as_floats(int32x4_t sums) {
  if constexpr (shift_of(KIND) == 0) return vcvtq_f32_s32(sums);
  else return vcvtq_n_f32_s32(sums, shift_of(KIND));
}

// Sums over OCTETS_ octets from `first` on, of columns 4 c.. of the operands.
template <class Tile, int OCTETS_, class Rows>
[[gnu::always_inline]] inline void dot(const Rows &rows, int k8, const Operands &w, int first, int c,
                                       int32x4_t sums[Tile::UNITS][Tile::WIDTH]) {
#pragma GCC unroll 8
  for (int u = 0; u < Tile::UNITS; ++u)
#pragma GCC unroll 8
    for (int i = 0; i < Tile::WIDTH; ++i) sums[u][i] = vdupq_n_s32(0);
#pragma GCC unroll 4
  for (int o = first; o < first + OCTETS_; ++o) Tile::add(rows, k8 + o, w.bytes[o] + Tile::first_vector(c), sums);
}

struct Bytes16 {
  int32x4_t v[4];
};

// 16 bytes as integers.
inline Bytes16 widened(uint8x16_t b) {
  const uint16x8_t low = vmovl_u8(vget_low_u8(b)), high = vmovl_high_u8(b);
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_high_u16(low)),
          vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_high_u16(high))};
}
inline Bytes16 widened(int8x16_t b) {
  const int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_high_s8(b);
  return {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)};
}

// 16 scale bytes, signed where the format's are.
template <PanelKind KIND>
inline Bytes16 scale_bytes(const uint8_t *p) {
  const uint8x16_t bytes = vld1q_u8(p);
  if constexpr (KIND.zero != 0) return widened(vreinterpretq_s8_u8(bytes));
  else if constexpr (KIND.bits == 2) return widened(vandq_u8(bytes, vdupq_n_u8(15)));
  else return widened(bytes);
}

// Minima of 16 columns for each `sub` of 128 values. Times sums of q they stay below 2^24, so floats add them exactly.
template <PanelKind KIND>
struct Minima {
  static constexpr int COUNT = 128 / KIND.sub;
  alignas(64) float of[COUNT][COLUMNS];

  explicit Minima(const uint8_t *p) {
    for (int i = 0; i < COUNT; ++i) {
      const uint8x16_t bytes = vld1q_u8(p + COLUMNS * i);
      const Bytes16 wide = widened(KIND.bits == 2 ? vshrq_n_u8(bytes, 4) : bytes);
      for (int c = 0; c < 4; ++c) vst1q_f32(of[i] + 4 * c, vcvtq_f32_s32(wide.v[c]));
    }
  }

  // Products with the four sums of q from number `i` on, of columns 4 c..
  float32x4_t times(float32x4_t sums, int i, int c) const {
    const auto m = [&](int j) { return vld1q_f32(of[i + j] + 4 * c); };
    float32x4_t total = vmulq_laneq_f32(m(0), sums, 0);
    total = vfmaq_laneq_f32(total, m(1), sums, 1);
    total = vfmaq_laneq_f32(total, m(2), sums, 2);
    return vfmaq_laneq_f32(total, m(3), sums, 3);
  }
};

// 128 values of R rows, with -(sum of q) of each 32 or 16 as floats.
template <PanelKind KIND, int R, class Rows>
struct HalfRows {
  Rows rows;
  float scales[R];
  float32x4_t negative_sums[R][KIND.sub == 32 ? 1 : 2];

  HalfRows(const uint8_t *acts, int64_t stride) : rows(reinterpret_cast<const Acts128 *>(acts)->q, stride) {
    for (int r = 0; r < R; ++r) {
      const Acts128 &a = *reinterpret_cast<const Acts128 *>(acts + r * stride);
      scales[r] = a.scale;
      if constexpr (!KIND.mins) continue;
      if constexpr (KIND.sub == 32) negative_sums[r][0] = vcvtq_f32_s32(vmovl_s16(vld1_s16(a.negative_pairs)));
      else for (int i = 0; i < 2; ++i) negative_sums[r][i] = vcvtq_f32_s32(vld1q_s32(a.negative_sums + 4 * i));
    }
  }
};

// One half superblock of one panel: 128 values.
template <PanelKind KIND, int R, template <int, int> class TileOf, class Rows>
inline void add_half(const HalfRows<KIND, R, Rows> &acts, const uint8_t *block, int64_t half, Chains<R> &chains) {
  constexpr int C = columns_in_flight(R), SUBS = GROUP / KIND.sub;
  using Tile = TileOf<R, C>;
  constexpr Layout at = layout(KIND, 0);
  const uint8_t *codes = block + at.codes + half * 4 * REGISTER * KIND.bits;
  const uint8_t *scales = block + at.scales + half * (128 / KIND.sub) * COLUMNS;
  int32x4_t sums[4 / C][Tile::UNITS][Tile::WIDTH];
#pragma GCC unroll 2
  for (int p = 0; p < 4 / C; ++p)
#pragma GCC unroll 8
    for (int u = 0; u < Tile::UNITS; ++u)
#pragma GCC unroll 8
      for (int i = 0; i < Tile::WIDTH; ++i) sums[p][u][i] = vdupq_n_s32(0);
  for (int g = 0; g < 4; ++g) {
    Operands w;
    unpack<KIND, Tile::FORM>(codes + g * REGISTER * KIND.bits, w);
#pragma GCC unroll 2
    for (int sub = 0; sub < SUBS; ++sub) {
      const Bytes16 bytes = scale_bytes<KIND>(scales + (g * SUBS + sub) * COLUMNS);
#pragma GCC unroll 2
      for (int p = 0; p < 4 / C; ++p) {
        int32x4_t part[Tile::UNITS][Tile::WIDTH], scale[Tile::WIDTH];
        dot<Tile, OCTETS / SUBS>(acts.rows, OCTETS * g, w, OCTETS / SUBS * sub, C * p, part);
        Tile::spread(bytes.v + C * p, scale);
#pragma GCC unroll 8
        for (int u = 0; u < Tile::UNITS; ++u)
#pragma GCC unroll 8
          for (int i = 0; i < Tile::WIDTH; ++i) sums[p][u][i] = vmlaq_s32(sums[p][u][i], part[u][i], scale[i]);
      }
    }
  }
  float32x4_t d[4];
  for (int c = 0; c < 4; ++c) d[c] = four<Number::f16>(block + 8 * c);
  const auto each = [&](const auto &less_minima) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const float32x4_t t = vmulq_f32(d[c], as_floats<KIND>(Tile::row(sums[c / C], r, c % C)));
        float *out = chains.sums[r] + 4 * c;
        vst1q_f32(out, vfmaq_n_f32(vld1q_f32(out), less_minima(t, r, c), acts.scales[r]));
      }
    }
  };
  if constexpr (KIND.mins) {
    const Minima<KIND> minima(block + at.mins + half * (128 / KIND.sub) * COLUMNS);
    float32x4_t dmin[4];
    for (int c = 0; c < 4; ++c) dmin[c] = four<Number::f16>(block + 2 * COLUMNS + 8 * c);
    each([&](float32x4_t t, int r, int c) {
      float32x4_t negative = minima.times(acts.negative_sums[r][0], 0, c);
      if constexpr (KIND.sub == 16) negative = vaddq_f32(negative, minima.times(acts.negative_sums[r][1], 4, c));
      return vfmaq_f32(t, dmin[c], negative);
    });
  } else {
    each([](float32x4_t t, int, int) { return t; });
  }
}

// The chains of a panel whose every group is added to them, in the order of a tile's sums.
template <int R, template <int, int> class TileOf>
struct TileChains {
  static constexpr int C = columns_in_flight(R), PASSES = 4 / C;
  using Tile = TileOf<R, C>;
  alignas(64) float sums[PASSES][Tile::UNITS][Tile::WIDTH][4];

  Chains<R> in_rows() const {
    Chains<R> rows;
    for (int p = 0; p < PASSES; ++p) {
      int32x4_t bits[Tile::UNITS][Tile::WIDTH];
      for (int u = 0; u < Tile::UNITS; ++u)
        for (int i = 0; i < Tile::WIDTH; ++i) bits[u][i] = vreinterpretq_s32_f32(vld1q_f32(sums[p][u][i]));
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) vst1q_f32(rows.sums[r] + 4 * (C * p + c), vreinterpretq_f32_s32(Tile::row(bits, r, c)));
    }
    return rows;
  }
};

// 256 values of R rows, with the numbers of each 32 in the lanes that hold the sums of their row.
template <PanelKind KIND, int R, class Tile>
struct SuperblockRows {
  typename Tile::template Rows<SUPERBLOCK> rows;
  alignas(64) float scales[GROUPS][Tile::UNITS][4], sums[GROUPS][Tile::UNITS][4];
  int32_t negative_sums[GROUPS][Tile::UNITS][4];

  SuperblockRows(const uint8_t *acts, int64_t stride) : rows(reinterpret_cast<const Acts32 *>(acts)->q, stride) {
    for (int u = 0; u < Tile::UNITS; ++u) {
      const int last = Tile::ROWS * u + Tile::ROWS - 1;
      const auto &a = *reinterpret_cast<const Acts32 *>(acts + Tile::ROWS * u * stride);
      const auto &b = *reinterpret_cast<const Acts32 *>(acts + (last < R ? last : R - 1) * stride);
      for (int g = 0; g < GROUPS; ++g) {
        vst1q_f32(scales[g][u], vcombine_f32(vdup_n_f32(a.scales[g]), vdup_n_f32(b.scales[g])));
        if constexpr (KIND.mins) vst1q_f32(sums[g][u], vcombine_f32(vdup_n_f32(a.sums[g]), vdup_n_f32(b.sums[g])));
        if constexpr (offset_of(KIND) != KIND.zero) {
          vst1q_s32(negative_sums[g][u], vcombine_s32(vdup_n_s32(a.negative_sums[g]), vdup_n_s32(b.negative_sums[g])));
        }
      }
    }
  }
};

// Numbers of columns as a tile's sums hold them.
template <class Tile, Number NUMBER, int C>
inline void spread_numbers(const uint8_t *p, float32x4_t out[Tile::WIDTH]) {
  int32x4_t bits[C], wide[Tile::WIDTH];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) bits[c] = vreinterpretq_s32_f32(four<NUMBER>(p + 4 * c * bytes_of(NUMBER)));
  Tile::spread(bits, wide);
#pragma GCC unroll 8
  for (int i = 0; i < Tile::WIDTH; ++i) out[i] = vreinterpretq_f32_s32(wide[i]);
}

// One group of 32 values of one panel whose groups have scales, and perhaps biases, of their own.
template <PanelKind KIND, int R, template <int, int> class TileOf, class Acts>
inline void add_group(const Acts &acts, const uint8_t *codes, const uint8_t *scales, const uint8_t *biases, int g,
                      TileChains<R, TileOf> &chains) {
  constexpr int C = columns_in_flight(R);
  constexpr int64_t width = 4 * C * bytes_of(KIND.number);
  using Tile = TileOf<R, C>;
  Operands w;
  unpack<KIND, Tile::FORM>(codes, w);
#pragma GCC unroll 2
  for (int p = 0; p < 4 / C; ++p) {
    int32x4_t sums[Tile::UNITS][Tile::WIDTH];
    dot<Tile, OCTETS>(acts.rows, OCTETS * g, w, 0, C * p, sums);
    float32x4_t scale[Tile::WIDTH], bias[Tile::WIDTH];
    spread_numbers<Tile, KIND.number, C>(scales + p * width, scale);
    if constexpr (KIND.mins) spread_numbers<Tile, KIND.number, C>(biases + p * width, bias);
#pragma GCC unroll 8
    for (int u = 0; u < Tile::UNITS; ++u) {
      const float32x4_t row_scale = vld1q_f32(acts.scales[g][u]);
#pragma GCC unroll 8
      for (int i = 0; i < Tile::WIDTH; ++i) {
        int32x4_t sum = sums[u][i];
        if constexpr (offset_of(KIND) != KIND.zero) {
          sum = vmlaq_n_s32(sum, vld1q_s32(acts.negative_sums[g][u]), KIND.zero - offset_of(KIND));
        }
        float *out = chains.sums[p][u][i];
        float32x4_t y = vfmaq_f32(vld1q_f32(out), as_floats<KIND>(sum), vmulq_f32(scale[i], row_scale));
        if constexpr (KIND.mins) y = vfmaq_f32(y, bias[i], vld1q_f32(acts.sums[g][u]));
        vst1q_f32(out, y);
      }
    }
  }
}

template <PanelKind KIND, int R, template <int, int> class TileOf>
using ChainsOf = std::conditional_t<KIND.arithmetic == Arithmetic::subscaled, Chains<R>, TileChains<R, TileOf>>;

// Adds 256 values of `count` panels to their chains.
template <PanelKind KIND, int R, template <int, int> class TileOf>
inline void add_superblock(const Strip &s, const uint8_t *panel, int64_t count, int64_t b,
                           ChainsOf<KIND, R, TileOf> *chains) {
  using Tile = TileOf<R, columns_in_flight(R)>;
  if constexpr (KIND.arithmetic == Arithmetic::subscaled) {
    constexpr Layout at = layout(KIND, 0);
    for (int64_t half = 0; half < 2; ++half) {
      const uint8_t *acts = s.acts + (2 * b + half) * sizeof(Acts128);
      const HalfRows<KIND, R, typename Tile::template Rows<128>> rows(acts, s.acts_stride);
      for (int64_t p = 0; p < count; ++p) {
        add_half<KIND, R, TileOf>(rows, panel + p * s.panel_bytes + b * at.bytes, half, chains[p]);
      }
    }
  } else {
    constexpr int64_t width = COLUMNS * bytes_of(KIND.number);
    const Layout at = layout(KIND, s.group);
    const SuperblockRows<KIND, R, Tile> rows(s.acts + b * sizeof(Acts32), s.acts_stride);
    for (int64_t p = 0; p < count; ++p) {
      const uint8_t *block = panel + p * s.panel_bytes + b * at.bytes;
      for (int g = 0; g < GROUPS; ++g) {
        const int64_t scale = GROUP * g / s.group * width;
        add_group<KIND, R, TileOf>(rows, block + at.codes + g * REGISTER * KIND.bits, block + at.scales + scale,
                                   block + at.mins + scale, g, chains[p]);
      }
    }
  }
}

// Sums of a panel go out, with bias and residual where they are given; columns past the last are not touched.
template <int R>
inline void store(const Strip &s, int64_t column, const Chains<R> &chains) {
  const int64_t left = s.columns - column;
  for (int r = 0; r < R; ++r) {
    Sixteen y = load16(chains.sums[r]);
    const auto add = [&](const float *x) {
      const Sixteen more = load_some(x, left);
      for (int i = 0; i < VECTORS; ++i) y.v[i] = vaddq_f32(y.v[i], more.v[i]);
    };
    if (s.bias) add(s.bias + column);
    if (s.residual) add(s.residual + r * s.out_stride + column);
    store_some(s.out + r * s.out_stride + column, y, left);
  }
}

template <PanelKind KIND, int R, template <int, int> class TileOf>
void quantised_rows(const Strip &s) {
  const int64_t panels = (s.columns + COLUMNS - 1) / COLUMNS;
  for (int64_t first = 0; first < panels; first += PANELS_AT_ONCE) {
    const int64_t count = panels - first < PANELS_AT_ONCE ? panels - first : PANELS_AT_ONCE;
    ChainsOf<KIND, R, TileOf> chains[PANELS_AT_ONCE] = {};
    for (int64_t b = 0; b < s.superblocks; ++b) {
      add_superblock<KIND, R, TileOf>(s, s.panels + first * s.panel_bytes, count, b, chains);
    }
    for (int64_t p = 0; p < count; ++p) {
      if constexpr (KIND.arithmetic == Arithmetic::subscaled) store<R>(s, (first + p) * COLUMNS, chains[p]);
      else store<R>(s, (first + p) * COLUMNS, chains[p].in_rows());
    }
  }
}

// V vectors of 4 columns from number `from` of the panels on, all of K: a chain is 4 cycles a step, so 16 are in flight.
template <PanelKind KIND, int R, int V>
inline void add_dense(const Strip &s, const uint8_t *panel, int from, Chains<R> *chains) {
  constexpr int64_t width = 4 * bytes_of(KIND.number);
  float32x4_t sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums[r][v] = vdupq_n_f32(0);
  for (int64_t k = 0; k < s.superblocks * SUPERBLOCK; ++k) {
    float32x4_t w[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      w[v] = four<KIND.number>(panel + (from + v) / 4 * s.panel_bytes + (4 * k + (from + v) % 4) * width);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float x = reinterpret_cast<const float *>(s.acts + r * s.acts_stride)[k];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sums[r][v] = vfmaq_n_f32(sums[r][v], w[v], x);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) vst1q_f32(chains[(from + v) / 4].sums[r] + 4 * ((from + v) % 4), sums[r][v]);
}

template <PanelKind KIND, int R>
void dense_rows(const Strip &s) {
  constexpr int AT_ONCE = R == 1 ? 4 : R == 2 ? 2 : 1;
  const int64_t panels = (s.columns + COLUMNS - 1) / COLUMNS;
  for (int64_t first = 0; first < panels;) {
    Chains<R> chains[AT_ONCE];
    const uint8_t *panel = s.panels + first * s.panel_bytes;
    int64_t count = 1;
    if constexpr (R > 4) {
      add_dense<KIND, R, 2>(s, panel, 0, chains);
      add_dense<KIND, R, 2>(s, panel, 2, chains);
    } else if (panels - first >= AT_ONCE) {
      add_dense<KIND, R, 4 * AT_ONCE>(s, panel, 0, chains);
      count = AT_ONCE;
    } else {
      add_dense<KIND, R, 4>(s, panel, 0, chains);
    }
    for (int64_t p = 0; p < count; ++p) store<R>(s, (first + p) * COLUMNS, chains[p]);
    first += count;
  }
}

}  // namespace
}  // namespace puna::neon
