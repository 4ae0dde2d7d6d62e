// Codes are unpacked as the NEON kernels do it, but for many rows at once and into memory.
#include "sme_operands.h"

#include <arm_neon.h>

#include <algorithm>
#include <array>
#include <utility>

#include "numbers.h"

namespace puna {
namespace {

// Register j of a group: 16 columns x 4 k of codes or table entries, `zero` not yet subtracted.
template <PanelKind KIND>
uint8x16x4_t codes_of(const uint8_t *planes, int j) {
  uint8x16x4_t codes{};
  for (int at = 0; at < KIND.bits;) {
    const int width = plane_width(KIND.bits - at), shift = j / width * width;
    const uint8_t *plane = planes + j % width * REGISTER;
    const uint8x16_t mask = vdupq_n_u8(static_cast<uint8_t>((1 << width) - 1));
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t bits = vandq_u8(vshlq_u8(vld1q_u8(plane + 16 * i), vdupq_n_s8(static_cast<int8_t>(-shift))), mask);
      codes.val[i] = vorrq_u8(codes.val[i], vshlq_u8(bits, vdupq_n_s8(static_cast<int8_t>(at))));
    }
    planes += width * REGISTER;
    at += width;
  }
  if constexpr (KIND.table != Table::none) {
    const uint8x16_t table = vld1q_u8(KIND.table == Table::iq4 ? IQ4.data() : MXFP4.data());
    for (int i = 0; i < 4; ++i) codes.val[i] = vqtbl1q_u8(table, codes.val[i]);
  }
  return codes;
}

// 16 scale bytes, and 16 minima, of `sub` values.
template <PanelKind KIND>
uint8x16_t scale_bytes(const uint8_t *scales) {
  const uint8x16_t bytes = vld1q_u8(scales);
  return KIND.bits == 2 ? vandq_u8(bytes, vdupq_n_u8(15)) : bytes;
}
template <PanelKind KIND>
uint8x16_t min_bytes(const uint8_t *mins) {
  const uint8x16_t bytes = vld1q_u8(mins);
  return KIND.bits == 2 ? vshrq_n_u8(bytes, 4) : bytes;
}

// Two k of 16 columns: (code - zero) x sub-scale. Sub-scales are signed bytes, or below 64.
void store_products(int8x16_t left, int8x16_t right, int8x16x2_t scales, int16_t *to) {
  vst1q_s16(to, vmull_s8(vget_low_s8(left), vget_low_s8(scales.val[0])));
  vst1q_s16(to + 8, vmull_high_s8(left, scales.val[0]));
  vst1q_s16(to + 16, vmull_s8(vget_low_s8(right), vget_low_s8(scales.val[1])));
  vst1q_s16(to + 24, vmull_high_s8(right, scales.val[1]));
}

// 32 k into 16 steps.
template <PanelKind KIND>
void products_of_group(const uint8_t *planes, const uint8_t *scales, int16_t *to) {
  constexpr int64_t STEP = 2 * WIDE_COLUMNS;
  const int8x16_t zero = vdupq_n_s8(static_cast<int8_t>(KIND.zero));
  int8x16x2_t pairs{};
  for (int j = 0; j < 8; ++j) {
    if (4 * j % KIND.sub == 0) {
      const int8x16_t bytes = vreinterpretq_s8_u8(scale_bytes<KIND>(scales + 4 * j / KIND.sub * COLUMNS));
      pairs = {{vzip1q_s8(bytes, bytes), vzip2q_s8(bytes, bytes)}};
    }
    const uint8x16x4_t codes = codes_of<KIND>(planes, j);
    int16x8_t v[4];  // 4 columns x 4 k, k in pairs
    for (int i = 0; i < 4; ++i) v[i] = vreinterpretq_s16_s8(vsubq_s8(vreinterpretq_s8_u8(codes.val[i]), zero));
    const auto even = [](int16x8_t a, int16x8_t b) { return vreinterpretq_s8_s16(vuzp1q_s16(a, b)); };
    const auto odd = [](int16x8_t a, int16x8_t b) { return vreinterpretq_s8_s16(vuzp2q_s16(a, b)); };
    store_products(even(v[0], v[1]), even(v[2], v[3]), pairs, to + 2 * j * STEP);
    store_products(odd(v[0], v[1]), odd(v[2], v[3]), pairs, to + (2 * j + 1) * STEP);
  }
}

// Minima of two times `sub` values into one step.
template <PanelKind KIND>
void minima_step(const uint8_t *mins, int16_t *to) {
  const uint8x16_t first = min_bytes<KIND>(mins), second = min_bytes<KIND>(mins + COLUMNS);
  const uint8x16_t zero = vdupq_n_u8(0);
  const uint8x16_t low = vzip1q_u8(first, second), high = vzip2q_u8(first, second);
  vst1q_u8(reinterpret_cast<uint8_t *>(to), vzip1q_u8(low, zero));
  vst1q_u8(reinterpret_cast<uint8_t *>(to + 8), vzip2q_u8(low, zero));
  vst1q_u8(reinterpret_cast<uint8_t *>(to + 16), vzip1q_u8(high, zero));
  vst1q_u8(reinterpret_cast<uint8_t *>(to + 24), vzip2q_u8(high, zero));
}

template <PanelKind KIND>
void i16_of(const PanelPart &part, int64_t quarter, int16_t *b, BlockScales *scales) {
  constexpr Layout at = layout(KIND, 0);
  constexpr int64_t GROUP_SCALES = GROUP / KIND.sub * COLUMNS, STEP = 2 * WIDE_COLUMNS;
  b += quarter * 2 * COLUMNS;
  for (int64_t half = 0; half < 2 * part.superblocks; ++half, ++scales) {
    const uint8_t *block = part.at() + half / 2 * at.bytes;
    for (int64_t c = 0; c < COLUMNS; ++c) {
      scales->d[quarter * COLUMNS + c] = number_at(Number::f16, block, c);
      scales->dmin[quarter * COLUMNS + c] = number_at(Number::f16, block + 2 * COLUMNS, c);
    }
    const int64_t first = half % 2 * 4;
    for (int64_t g = first; g < first + 4; ++g, b += 16 * STEP)
      products_of_group<KIND>(block + at.codes + g * REGISTER * KIND.bits, block + at.scales + g * GROUP_SCALES, b);
    for (int64_t i = 0; i < min_steps(KIND); ++i, b += STEP)
      minima_step<KIND>(block + at.mins + first * GROUP_SCALES + 2 * i * COLUMNS, b);
  }
}

void store_floats(uint8x16_t codes, int16x8_t zero, const float *scale, const float *minimum, float *to) {
  const int16x8_t halves[2] = {vsubq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(codes))), zero),
                               vsubq_s16(vreinterpretq_s16_u16(vmovl_high_u8(codes)), zero)};
  for (int i = 0; i < 4; ++i) {
    const int32x4_t whole = i % 2 ? vmovl_high_s16(halves[i / 2]) : vmovl_s16(vget_low_s16(halves[i / 2]));
    const float32x4_t product = vmulq_f32(vld1q_f32(scale + 4 * i), vcvtq_f32_s32(whole));
    vst1q_f32(to + 4 * i, minimum ? vaddq_f32(product, vld1q_f32(minimum + 4 * i)) : product);
  }
}

// The scale and what is added, of 16 columns, as decode_row has them.
template <PanelKind KIND>
void float_scales(const uint8_t *block, const Layout &at, int64_t k, int64_t group, float *scale, float *minimum) {
  for (int64_t c = 0; c < COLUMNS; ++c) {
    if constexpr (KIND.arithmetic == Arithmetic::subscaled) {
      const int64_t i = k / KIND.sub * COLUMNS + c;
      const SubScale sub = sub_scale(KIND, block + at.scales + i, block + at.mins + i);
      scale[c] = number_at(Number::f16, block, c) * static_cast<float>(sub.scale);
      if (KIND.mins) minimum[c] = -(number_at(Number::f16, block + 2 * COLUMNS, c) * static_cast<float>(sub.minimum));
    } else {
      const int64_t i = k / group * COLUMNS + c;
      scale[c] = number_at(KIND.number, block + at.scales, i);
      if (KIND.mins) minimum[c] = number_at(KIND.number, block + at.mins, i);
    }
  }
}

template <PanelKind KIND>
void f32_of(const PanelPart &part, int64_t quarter, float *b) {
  const Layout at = layout(KIND, part.panels->group);
  b += quarter * COLUMNS;
  for (int64_t s = 0; s < part.superblocks; ++s) {
    const uint8_t *block = part.at() + s * at.bytes;
    if constexpr (KIND.arithmetic == Arithmetic::dense) {
      for (int64_t k = 0; k < SUPERBLOCK; ++k, b += WIDE_COLUMNS)
        for (int64_t c = 0; c < COLUMNS; ++c) b[c] = number_at(KIND.number, block, k * COLUMNS + c);
    } else {
      constexpr int64_t EVERY = KIND.sub == 16 ? 16 : GROUP;
      const int16x8_t zero = vdupq_n_s16(KIND.zero);
      float scale[COLUMNS], minimum[COLUMNS];
      for (int64_t k = 0; k < SUPERBLOCK; k += 4) {
        if (k % EVERY == 0) float_scales<KIND>(block, at, k, part.panels->group, scale, minimum);
        const uint8_t *planes = block + at.codes + k / GROUP * REGISTER * KIND.bits;
        const uint8x16x4_t codes = codes_of<KIND>(planes, static_cast<int>(k % GROUP / 4));
        uint8_t bytes[REGISTER];
        for (int i = 0; i < 4; ++i) vst1q_u8(bytes + 16 * i, codes.val[i]);
        const uint8x16x4_t by_k = vld4q_u8(bytes);
        for (int i = 0; i < 4; ++i, b += WIDE_COLUMNS)
          store_floats(by_k.val[i], zero, scale, KIND.mins ? minimum : nullptr, b);
      }
    }
  }
}

using ToI16 = void (*)(const PanelPart &, int64_t, int16_t *, BlockScales *);
using ToF32 = void (*)(const PanelPart &, int64_t, float *);

template <size_t I>
constexpr ToI16 to_i16() {
  if constexpr (KINDS[I].arithmetic == Arithmetic::subscaled) return i16_of<KINDS[I]>;
  else return nullptr;
}
template <size_t... I>
constexpr std::array<ToI16, KIND_COUNT> all_i16(std::index_sequence<I...>) {
  return {to_i16<I>()...};
}
template <size_t... I>
constexpr std::array<ToF32, KIND_COUNT> all_f32(std::index_sequence<I...>) {
  return {f32_of<KINDS[I]>...};
}
constexpr auto I16_OF = all_i16(std::make_index_sequence<KIND_COUNT>{});
constexpr auto F32_OF = all_f32(std::make_index_sequence<KIND_COUNT>{});

constexpr int VECTORS = COLUMNS / 4;

// Four rows at once: their accumulators, d and dmin fill the registers.
template <bool MINS>
void add_to_rows(const BlockSums &from, bool fresh, int64_t row, float *acc) {
  constexpr int ROWS = 4;
  float32x4_t sum[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = fresh ? vdupq_n_f32(0) : vld1q_f32(acc + r * COLUMNS + 4 * v);
  for (int64_t block = 0; block < from.blocks; ++block) {
    const int32_t *products = from.sums + block * from.stride + row * COLUMNS;
    const float *d = from.scales[block].d + from.column, *dmin = from.scales[block].dmin + from.column;
    for (int v = 0; v < VECTORS; ++v) {
      const float32x4_t scale = vld1q_f32(d + 4 * v);
      const float32x4_t minimum = MINS ? vld1q_f32(dmin + 4 * v) : scale;
      for (int r = 0; r < ROWS; ++r) {
        const int32_t *at = products + r * COLUMNS + 4 * v;
        float32x4_t t = vmulq_f32(scale, vcvtq_f32_s32(vld1q_s32(at)));
        if (MINS) t = vfmsq_f32(t, minimum, vcvtq_f32_s32(vld1q_s32(at + TILE_FLOATS)));
        sum[r][v] = vfmaq_n_f32(sum[r][v], t, from.act_scales[block * TILE_ROWS + row + r]);
      }
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) vst1q_f32(acc + r * COLUMNS + 4 * v, sum[r][v]);
}

}  // namespace

void i16_operand(const PanelPart &part, int64_t quarter, int16_t *b, BlockScales *scales) {
  I16_OF[part.panels->kind](part, quarter, b, scales);
}

void f32_operand(const PanelPart &part, int64_t quarter, float *b) { F32_OF[part.panels->kind](part, quarter, b); }

void add_blocks(const BlockSums &from, bool fresh, float acc[TILE_ROWS * COLUMNS]) {
  const auto add = from.mins ? add_to_rows<true> : add_to_rows<false>;
  for (int64_t row = 0; row < TILE_ROWS; row += 4) add(from, fresh, row, acc + row * COLUMNS);
}

void finish(const float acc[TILE_ROWS * COLUMNS], const Corner &to) {
  for (int64_t r = 0; r < to.rows; ++r) {
    for (int64_t c = 0; c < to.columns; ++c) {
      float y = acc[r * COLUMNS + c];
      if (to.bias) y += to.bias[c];
      if (to.residual) y += to.residual[r * to.stride + c];
      to.out[r * to.stride + c] = y;
    }
  }
}

}  // namespace puna
