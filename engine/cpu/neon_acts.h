// NEON: a row of activations becomes int8 blocks with scales and sums.
#pragma once

#include "matmul.h"
#include "neon_lanes.h"

namespace puna::neon {
namespace {

// 16 x COUNT values of a row, zeros from its end on.
template <int COUNT>
struct Block {
  Sixteen x[COUNT];

  Block(const float *row, int64_t k, int64_t end) {
    for (int i = 0; i < COUNT; ++i) x[i] = load_some(row + k + LANES * i, end - k - LANES * i);
  }
  // The bits of the largest magnitude: as integers they order like the floats, with infinity and then every NaN on top.
  int32_t amax_bits() const {
    int32x4_t most = vdupq_n_s32(0);
    for (const Sixteen &s : x)
      for (const float32x4_t v : s.v) most = vmaxq_s32(most, vreinterpretq_s32_f32(vabsq_f32(v)));
    return vmaxvq_s32(most);
  }
  int32x4_t whole(int i, int v, const Steps &steps) const {
    return vcvtnq_s32_f32(vmulq_n_f32(x[i].v[v], steps.inverse));
  }
  float squared_error(const Steps &steps) const {
    Sixteen sum = all(0);
    for (int i = 0; i < COUNT; ++i) {
      Sixteen error;
      for (int v = 0; v < VECTORS; ++v) {
        const float32x4_t q = steps.inverse == 0 ? vdupq_n_f32(0) : vcvtq_f32_s32(whole(i, v, steps));
        error.v[v] = vfmsq_f32(x[i].v[v], q, vdupq_n_f32(steps.scale));
      }
      add_product(sum, error, error);
    }
    return fold16(sum);
  }
  int8x16_t codes(int i, const Steps &steps) const {
    if (steps.inverse == 0) return vdupq_n_s8(0);
    const int16x8_t low = vcombine_s16(vmovn_s32(whole(i, 0, steps)), vmovn_s32(whole(i, 1, steps)));
    const int16x8_t high = vcombine_s16(vmovn_s32(whole(i, 2, steps)), vmovn_s32(whole(i, 3, steps)));
    return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
  }
};

// Quantises COUNT x 16 values: gives the scale, writes q, and for each 16 the sum of q.
template <int COUNT>
inline float quantise(const float *x, int64_t k, int64_t end, int8_t *q, int32_t sums[COUNT]) {
  const Block<COUNT> block(x, k, end);
  const int32_t amax_bits = block.amax_bits();
  Steps steps = steps_of(amax_bits);
  if constexpr (LANES * COUNT == GROUP) {
    steps = best_steps(amax_bits, [&](const Steps &tried) { return block.squared_error(tried); });
  }
  for (int i = 0; i < COUNT; ++i) {
    const int8x16_t codes = block.codes(i, steps);
    vst1q_s8(q + LANES * i, codes);
    sums[i] = vaddlvq_s8(codes);
  }
  return steps.scale;
}

inline void prepare128(const float *x, int64_t k, void *acts) {
  auto *block = static_cast<Acts128 *>(acts);
  const int64_t blocks = (k + SUPERBLOCK - 1) / SUPERBLOCK * 2;
  for (int64_t b = 0; b < blocks; ++b, ++block) {
    int32_t sums[8];
    block->scale = quantise<8>(x, 128 * b, k, block->q, sums);
    for (int i = 0; i < 8; ++i) block->negative_sums[i] = -sums[i];
    for (int i = 0; i < 4; ++i) block->negative_pairs[i] = static_cast<int16_t>(-(sums[2 * i] + sums[2 * i + 1]));
    block->unused = 0;
  }
}

inline void prepare32(const float *x, int64_t k, void *acts) {
  auto *block = static_cast<Acts32 *>(acts);
  const int64_t blocks = (k + SUPERBLOCK - 1) / SUPERBLOCK;
  for (int64_t b = 0; b < blocks; ++b, ++block) {
    for (int64_t g = 0; g < GROUPS; ++g) {
      int32_t sums[2];
      block->scales[g] = quantise<2>(x, SUPERBLOCK * b + GROUP * g, k, block->q + GROUP * g, sums);
      block->negative_sums[g] = -(sums[0] + sums[1]);
      block->sums[g] = block->scales[g] * static_cast<float>(sums[0] + sums[1]);
    }
  }
}

}  // namespace
}  // namespace puna::neon
