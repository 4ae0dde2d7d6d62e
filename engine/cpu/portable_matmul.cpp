// The slow twin of every matmul kernel: plain C++, the same integers and the same chain of FMAs.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>

#include "lanes.h"
#include "matmul.h"
#include "numbers.h"

namespace puna {
namespace {

float whole(float value, const Steps &steps) { return steps.inverse == 0 ? 0 : std::nearbyintf(value * steps.inverse); }

template <int COUNT>
float squared_error(const float (&values)[COUNT], const Steps &steps) {
  float lanes[LANES] = {};
  for (int i = 0; i < COUNT; ++i) {
    const float error = std::fma(-whole(values[i], steps), steps.scale, values[i]);
    lanes[i % LANES] = std::fma(error, error, lanes[i % LANES]);
  }
  return fold(lanes);
}

// Quantises COUNT values from x[k], zeros from `end` on; gives the scale.
template <int COUNT>
float quantise(const float *x, int64_t k, int64_t end, int8_t *q) {
  float values[COUNT] = {};
  if (k < end) std::copy_n(x + k, std::min<int64_t>(COUNT, end - k), values);
  int32_t most = 0;
  for (const float v : values) most = std::max(most, std::bit_cast<int32_t>(v) & 0x7FFFFFFF);
  Steps steps = steps_of(most);
  if constexpr (COUNT == GROUP) steps = best_steps(most, [&](const Steps &tried) { return squared_error(values, tried); });
  for (int i = 0; i < COUNT; ++i) q[i] = static_cast<int8_t>(whole(values[i], steps));
  return steps.scale;
}

template <int COUNT>
int32_t sum_of(const int8_t *q) {
  int32_t sum = 0;
  for (int i = 0; i < COUNT; ++i) sum += q[i];
  return sum;
}

void prepare128(const float *x, int64_t k, void *acts) {
  auto *block = static_cast<Acts128 *>(acts);
  const int64_t blocks = (k + SUPERBLOCK - 1) / SUPERBLOCK * 2;
  for (int64_t b = 0; b < blocks; ++b, ++block) {
    *block = {};
    block->scale = quantise<128>(x, 128 * b, k, block->q);
    for (int i = 0; i < 8; ++i) block->negative_sums[i] = -sum_of<16>(block->q + 16 * i);
    for (int i = 0; i < 4; ++i) block->negative_pairs[i] = static_cast<int16_t>(-sum_of<32>(block->q + 32 * i));
  }
}

void prepare32(const float *x, int64_t k, void *acts) {
  auto *block = static_cast<Acts32 *>(acts);
  const int64_t blocks = (k + SUPERBLOCK - 1) / SUPERBLOCK;
  for (int64_t b = 0; b < blocks; ++b, ++block) {
    for (int64_t g = 0; g < GROUPS; ++g) {
      int8_t *q = block->q + GROUP * g;
      block->scales[g] = quantise<GROUP>(x, SUPERBLOCK * b + GROUP * g, k, q);
      block->negative_sums[g] = -sum_of<GROUP>(q);
      block->sums[g] = block->scales[g] * static_cast<float>(sum_of<GROUP>(q));
    }
  }
}

using Lanes = std::array<float, COLUMNS>;

// sums[c] = sum over COUNT k of value x q.
template <int COUNT>
void dot(const int16_t (*values)[COLUMNS], const int8_t *q, int32_t sums[COLUMNS]) {
  std::fill_n(sums, COLUMNS, 0);
  for (int k = 0; k < COUNT; ++k)
    for (int c = 0; c < COLUMNS; ++c) sums[c] += values[k][c] * q[k];
}

struct HalfSums {
  int32_t products[COLUMNS], minima[COLUMNS];
};

// Adds group g of the 128 in `a`: the scaled products, and the products of minima. SUB values share a scale.
template <int SUB>
void add_group(const PanelKind &kind, const int16_t (*values)[COLUMNS], const uint8_t *scales, const uint8_t *mins,
               const Acts128 &a, int64_t g, HalfSums &sums) {
  for (int64_t i = 0; i < GROUP / SUB; ++i) {
    const int8_t *q = a.q + GROUP * g + SUB * i;
    int32_t products[COLUMNS];
    dot<SUB>(values + SUB * i, q, products);
    for (int64_t c = 0; c < COLUMNS; ++c) {
      const SubScale sub = sub_scale(kind, scales + i * COLUMNS + c, mins + i * COLUMNS + c);
      sums.products[c] += products[c] * sub.scale;
      sums.minima[c] += sum_of<SUB>(q) * sub.minimum;
    }
  }
}

void subscaled_panel(const PanelKind &kind, const Strip &s, const uint8_t *panel, Lanes acc[]) {
  const Layout at = layout(kind, 0);
  for (int64_t h = 0; h < 2 * s.superblocks; ++h) {
    const uint8_t *block = panel + h / 2 * at.bytes;
    HalfSums sums[STRIP_ROWS] = {};
    const auto acts = [&](int64_t r) -> const Acts128 & {
      return reinterpret_cast<const Acts128 *>(s.acts + r * s.acts_stride)[h];
    };
    for (int64_t g = 0; g < 4; ++g) {
      const int64_t group = h % 2 * 4 + g, scale = group * (GROUP / kind.sub) * COLUMNS;
      int16_t values[GROUP][COLUMNS];
      group_values(kind, block + at.codes + group * REGISTER * kind.bits, values);
      const auto add = kind.sub == 32 ? add_group<32> : add_group<16>;
      for (int64_t r = 0; r < s.rows; ++r)
        add(kind, values, block + at.scales + scale, block + at.mins + scale, acts(r), g, sums[r]);
    }
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t c = 0; c < COLUMNS; ++c) {
        const float d = number_at(Number::f16, block, c), dmin = number_at(Number::f16, block + 2 * COLUMNS, c);
        float t = d * static_cast<float>(sums[r].products[c]);
        if (kind.mins) t = std::fma(-dmin, static_cast<float>(sums[r].minima[c]), t);
        acc[r][c] = std::fma(acts(r).scale, t, acc[r][c]);
      }
    }
  }
}

void grouped_panel(const PanelKind &kind, const Strip &s, const uint8_t *panel, Lanes acc[]) {
  const Layout at = layout(kind, s.group);
  for (int64_t b = 0; b < s.superblocks; ++b) {
    const uint8_t *block = panel + b * at.bytes;
    for (int64_t g = 0; g < GROUPS; ++g) {
      int16_t values[GROUP][COLUMNS];
      group_values(kind, block + at.codes + g * REGISTER * kind.bits, values);
      const int64_t lane = GROUP * g / s.group * COLUMNS;
      for (int64_t r = 0; r < s.rows; ++r) {
        const Acts32 &a = reinterpret_cast<const Acts32 *>(s.acts + r * s.acts_stride)[b];
        int32_t sums[COLUMNS];
        dot<GROUP>(values, a.q + GROUP * g, sums);
        for (int64_t c = 0; c < COLUMNS; ++c) {
          const float scale = number_at(kind.number, block + at.scales, lane + c) * a.scales[g];
          acc[r][c] = std::fma(static_cast<float>(sums[c]), scale, acc[r][c]);
          if (kind.mins) acc[r][c] = std::fma(number_at(kind.number, block + at.mins, lane + c), a.sums[g], acc[r][c]);
        }
      }
    }
  }
}

void dense_panel(const PanelKind &kind, const Strip &s, const uint8_t *panel, Lanes acc[]) {
  for (int64_t k = 0; k < s.superblocks * SUPERBLOCK; ++k) {
    float w[COLUMNS];
    for (int64_t c = 0; c < COLUMNS; ++c) w[c] = number_at(kind.number, panel, k * COLUMNS + c);
    for (int64_t r = 0; r < s.rows; ++r) {
      const float x = reinterpret_cast<const float *>(s.acts + r * s.acts_stride)[k];
      for (int64_t c = 0; c < COLUMNS; ++c) acc[r][c] = std::fma(x, w[c], acc[r][c]);
    }
  }
}

void store(const Strip &s, int64_t column, const Lanes acc[]) {
  const int64_t width = std::min(COLUMNS, s.columns - column);
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t c = 0; c < width; ++c) {
      float y = acc[r][c];
      if (s.bias) y += s.bias[column + c];
      if (s.residual) y += s.residual[r * s.out_stride + column + c];
      s.out[r * s.out_stride + column + c] = y;
    }
  }
}

template <size_t I>
void strip(const Strip &s) {
  constexpr PanelKind kind = KINDS[I];
  const uint8_t *panel = s.panels;
  for (int64_t column = 0; column < s.columns; column += COLUMNS, panel += s.panel_bytes) {
    Lanes acc[STRIP_ROWS] = {};
    if constexpr (kind.arithmetic == Arithmetic::subscaled) subscaled_panel(kind, s, panel, acc);
    else if constexpr (kind.arithmetic == Arithmetic::grouped) grouped_panel(kind, s, panel, acc);
    else dense_panel(kind, s, panel, acc);
    store(s, column, acc);
  }
}

template <size_t... I>
constexpr MatmulKernels all_kinds(std::index_sequence<I...>) {
  return {{prepare128, prepare32, prepare_dense}, {strip<I>...}};
}

}  // namespace

const MatmulKernels portable_matmul = all_kinds(std::make_index_sequence<KIND_COUNT>{});

}  // namespace puna
